"""Rows of prompt and completion: their tokens, their fingerprint, and what is refused."""

from __future__ import annotations

import copy

import pytest
import tiny

from geomcallbacks.behaviour import Completions, continuations

PROMPTS, COMPLETIONS = ["w1 w2", "w3", "w4 w5 w6 w7 w8"], ["w9", "w10 w11 w12", "w13 w14"]


def from_texts(**changes):
    settings = {"prompts": PROMPTS, "completions": COMPLETIONS, "tokenizer": tiny.tokenizer(), "max_length": 9}
    return Completions.from_texts(**(settings | changes))


@pytest.mark.parametrize("eos", [False, True])
def test_tokens_of_rows(eos):
    """BOS (1) before a prompt, EOS (2) behind a completion only, whatever the tokenizer adds; "w0" is token 4."""
    made = from_texts(tokenizer=tiny.tokenizer(eos))
    assert made.prompt_ids == [[1, 5, 6], [1, 7], [1, 8, 9, 10, 11, 12]]
    assert made.completion_ids == [[13, 2], [14, 15, 16, 2], [17, 18, 2]]
    bare = from_texts(tokenizer=tiny.tokenizer(eos), append_eos=False)
    assert bare.completion_ids == [[13], [14, 15, 16], [17, 18]]


def test_rows_are_cut_from_the_right_and_full_prompts_left_out():
    made = from_texts(max_length=4)
    assert made.prompt_ids == [[1, 5, 6], [1, 7]]
    assert made.completion_ids == [[13], [14, 15]]


def test_fingerprint_sees_where_the_completion_begins():
    assert Completions([[1, 2]], [[3]]).fingerprint != Completions([[1]], [[2, 3]]).fingerprint
    assert Completions([[1, 2]], [[3]]).fingerprint == Completions([(1, 2)], [(3,)]).fingerprint


def test_tokenizer_is_not_changed():
    tokenizer = tiny.tokenizer()
    tokenizer(["w1 w2", "w3"], padding="max_length", truncation=True, max_length=17)  # sets both on the fast tokenizer
    before = tokenizer.backend_tokenizer.to_str(), copy.copy(vars(tokenizer))
    from_texts(tokenizer=tokenizer)
    assert (tokenizer.backend_tokenizer.to_str(), vars(tokenizer)) == before


def test_continuations_are_windows_of_one_document():
    documents = [list(range(100, 125)), list(range(200, 209)), [], list(range(300, 330))]
    cut = lambda rows=5, answer_length=4, seed=0: continuations(
        documents, prompt_length=6, answer_length=answer_length, rows=rows, seed=seed
    )
    made = cut()
    assert {tuple(p + a) for p, a in zip(made.prompt_ids, made.completion_ids, strict=True)} == {
        tuple(range(start, start + 10)) for start in (100, 110, 300, 310, 320)
    }
    assert len({cut(rows=2, seed=seed).fingerprint for seed in range(8)}) > 1
    assert cut(rows=2, seed=7).fingerprint == cut(rows=2, seed=7).fingerprint
    with pytest.raises(ValueError, match="only 5 windows"):
        cut(rows=6)
    with pytest.raises(ValueError, match="answer_length=0"):
        cut(answer_length=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Completions([], []), ValueError, "at least one row"),
        (lambda: Completions([[1]], []), ValueError, "1 prompt_ids, 0 completion_ids"),
        (lambda: Completions([[1]], [[]]), ValueError, "completion 0 has no tokens"),
        (lambda: Completions([[]], [[1]]), ValueError, "prompt 0 has no tokens"),
        (lambda: Completions([[1]], [[-1]]), ValueError, "token id -1"),
        (lambda: from_texts(max_length=2), ValueError, "max_length=2 is filled by every prompt"),
        (lambda: from_texts(prompts="w1"), TypeError, "prompts is a single string"),
        (lambda: from_texts(completions=[None] * 3), TypeError, r"completions\[0\] is a NoneType"),
        (lambda: from_texts(completions=["w1"] * 2), ValueError, "3 prompts, 2 completions"),
        (lambda: from_texts(completions=[""] * 3, append_eos=False), ValueError, "completion 0 has no tokens"),
    ],
)
def test_bad_rows_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="append_eos=False"):
        from_texts(tokenizer=tokenizer)
