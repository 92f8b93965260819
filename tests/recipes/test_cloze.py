"""Cloze sets: what each promises, checked again from text and tokens; n-gram counts against counting by hand."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from judging.cloze import PretrainingCounts, far_cloze, near_cloze
from judging.ngrams import NgramCounts
from text.tokens import train_tokenizer

SYLLABLES = ["ra", "mo", "ti", "ke", "lu", "pa", "so", "ni", "ve", "do", "ga", "bi", "fu", "ze", "xo", "qui"]


def new_name(draw):
    return "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(3, 5)))


def document(seed, names, phrases):
    """Code that sets a name, says fixed phrases for a while, and uses the name again."""
    draw = random.Random(seed)
    lines = []
    for name in names:
        body = [f"    # {draw.choice(phrases)}" for _ in range(draw.randint(3, 6))]
        lines += [f"    self.{name} = {draw.randrange(1000)}", *body, f"    return self.{name}", ""]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def made():
    draw = random.Random(0)
    words = [new_name(draw) for _ in range(150)]
    phrases = [" ".join(draw.sample(words, 8)) for _ in range(25)]
    trained, held_out = (
        [document(first + seed, [new_name(draw) for _ in range(8)], phrases) for seed in range(documents)]
        for first, documents in ((0, 40), (1000, 50))
    )
    tokenizer = train_tokenizer(trained, 500)
    return trained, held_out, tokenizer, PretrainingCounts(trained, tokenizer)


def ids_of(tokenizer, texts):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def runs(documents, n):
    return Counter(tuple(row[i : i + n]) for row in documents for i in range(len(row) - n + 1))


def stands_in(prompt, options, answer, documents):
    whole = [*prompt, *options[answer]]
    return [d for d, row in enumerate(documents) if any(row[i : i + len(whole)] == whole for i in range(len(row)))]


def test_near_answers_are_given_away_by_three_tokens(made):
    trained, held_out, tokenizer, counts = made
    rows = near_cloze(held_out, counts, rows=60, seq_length=64)
    seen, held = ids_of(tokenizer, trained), ids_of(tokenizer, held_out)
    single, triple, fourfold = runs(seen, 1), runs(seen, 3), runs(seen, 4)
    above, most = Counter(), Counter()
    for prompt, options, answer in zip(rows.prompt_ids, rows.option_ids, rows.answers, strict=True):
        last, (token,) = tuple(prompt[-3:]), options[answer]
        following = sum(n for run, n in fourfold.items() if run[:3] == last)
        assert triple[last] >= following >= 20
        assert fourfold[(*last, token)] >= 0.8 * following
        texts = [re.fullmatch("( ?)[A-Za-z]+", tokenizer.decode(option)) for option in options]
        assert len({text[1] for text in texts}) == 1
        above[sum(single[tuple(option)] > single[(token,)] for option in options)] += 1
        most[token] += 1
        assert len(prompt) + 1 <= 64
        assert stands_in(prompt, options, answer, held)
    assert above == {0: 15, 1: 15, 2: 15, 3: 15}  # its frequency says nothing
    assert max(most.values()) <= 1 + 60 // 50
    assert len(set(rows.answers)) == 4


def test_far_answers_stand_far_back_and_nowhere_else(made):
    trained, held_out, tokenizer, counts = made
    rows = far_cloze(held_out, counts, rows=60, seq_length=128, min_distance=40)
    seen_words = Counter(word for text in trained for word in re.findall(r"[A-Za-z_]\w*", text))
    held = ids_of(tokenizer, held_out)
    above = Counter()
    for prompt, options, answer in zip(rows.prompt_ids, rows.option_ids, rows.answers, strict=True):
        names = [tokenizer.decode(option).strip() for option in options]
        context, near = tokenizer.decode(prompt), tokenizer.decode(prompt[-40:])
        assert re.search(rf"\b{names[answer]}\b", context)
        assert names[answer] not in near
        starts = [i for i in range(len(prompt)) if prompt[i : i + len(options[answer])] == options[answer]]
        assert len(prompt) - starts[-1] - len(options[answer]) >= 40  # the same tokens, in the context
        assert all(seen_words[name] <= 2 for name in names)
        assert len({len(option) for option in options}) == 1
        (home,) = stands_in(prompt, options, answer, held)
        for place, name in enumerate(names):
            if place != answer:
                assert name not in context
                homes = [d for d, text in enumerate(held_out) if re.search(rf"\b{name}\b", text)]
                assert homes
                assert home not in homes
        assert len(prompt) + len(options[answer]) <= 128
        scores = counts.ngrams.log_scores(prompt[-3:], options)
        above[sum(score > scores[answer] for score in scores)] += 1
        # Nor do pieces of the name: as many stand near the answer for every option.
        assert len({sum(token in prompt[-40:] for token in option) for option in options}) == 1
    assert above == {0: 15, 1: 15, 2: 15, 3: 15}  # the last tokens say nothing, to an n-gram model


def test_the_same_every_time_and_another_with_another_seed(made):
    _, held_out, _, counts = made
    for cut in (near_cloze, far_cloze):
        one, again, other = (cut(held_out[:25], counts, rows=20, seed=seed) for seed in (0, 0, 1))
        assert one.fingerprint == again.fingerprint != other.fingerprint


def test_bad_input_is_refused(made):
    trained, held_out, _, counts = made
    with pytest.raises(ValueError, match=r"rows=9000.*only \d+ places for far"):
        far_cloze(held_out[:8], counts, rows=9000)
    with pytest.raises(ValueError, match=r"texts\[1\] is also in the pretraining text"):
        near_cloze([held_out[0], trained[3]], counts, rows=4)
    with pytest.raises(ValueError, match=r"min_distance=120.*give 1 to 112"):
        far_cloze(held_out, counts, min_distance=120)


DOCUMENTS = [[1, 2, 3, 1, 2, 4], [], [2, 3, 1], [5], [1, 2, 3, 1]]


def test_the_commonest_next_token_found_by_hand():
    tokens, times, totals = NgramCounts(DOCUMENTS, 3).commonest_next(np.array([[1, 2], [2, 3], [2, 4], [9, 9]]))
    assert tokens.tolist() == [3, 1, -1, -1]  # 3 twice and 4 once; 1 always; the end of a document; unknown
    assert times.tolist() == [2, 3, 0, 0]
    assert totals.tolist() == [3, 3, 0, 0]


def test_counts_are_those_of_a_counter():
    draw = random.Random(1)
    documents = [[draw.randrange(7) for _ in range(draw.randrange(0, 40))] for _ in range(60)]
    counts = NgramCounts(documents, 4)
    for n in (1, 2, 3, 4):
        by_hand = runs(documents, n)
        asked = [tuple(draw.randrange(9) for _ in range(n)) for _ in range(300)] + list(by_hand)
        assert counts.counts(np.array(asked)).tolist() == [by_hand[run] for run in asked]


def test_scores_worked_by_hand():
    """Stupid Backoff: c(1 2 3)/c(1 2), else 0.4 · c(2 5)/c(2), else 0.16 · c(5)/N; N = 14."""
    counts = NgramCounts(DOCUMENTS, 3)
    scores = counts.log_scores([1, 2], [[3], [5], [9]])
    assert scores == pytest.approx([math.log(2 / 3), math.log(0.16 * 1 / 14), math.log(0.16 * 0.5 / 14)])
    # two tokens: 3 behind (1 2), then 1 behind (2 3)
    assert counts.log_scores([1, 2], [[3, 1]]) == pytest.approx([math.log(2 / 3) + math.log(3 / 3)])
    # no context: c(1)/N, then c(1 2)/c(1)
    assert counts.log_scores([], [[1, 2]]) == pytest.approx([math.log(5 / 14) + math.log(3 / 5)])
