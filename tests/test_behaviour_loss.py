"""Rows of prompt and completion, and their loss, against a forward pass for each prefix."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from test_behaviour_preference import one_by_one

from geomcallbacks.behaviour import CompletionLoss, Completions, completion_logprobs

PROMPTS, COMPLETIONS = ["w1 w2", "w3", "w4 w5 w6 w7 w8"], ["w9", "w10 w11 w12", "w13 w14"]


def rows(n=11):
    prompts = [text[: 10 + 3 * i] for i, text in enumerate(tiny.texts(n, words=12))]
    completions = [text[: 8 + 5 * (n - i)] for i, text in enumerate(tiny.texts(n, words=20, seed=3))]
    return Completions.from_texts(prompts, completions, tiny.tokenizer(), max_length=40)


@pytest.mark.parametrize("eos", [False, True])
def test_tokens_of_rows(eos):
    """BOS (1) before a prompt, EOS (2) behind a completion only, whatever the tokenizer adds; "w0" is token 4."""
    made = Completions.from_texts(PROMPTS, COMPLETIONS, tiny.tokenizer(eos), max_length=9)
    assert made.prompt_ids == [[1, 5, 6], [1, 7], [1, 8, 9, 10, 11, 12]]
    assert made.completion_ids == [[13, 2], [14, 15, 16, 2], [17, 18, 2]]
    assert len(made) == 3
    bare = Completions.from_texts(PROMPTS, COMPLETIONS, tiny.tokenizer(eos), max_length=9, append_eos=False)
    assert bare.completion_ids == [[13], [14, 15, 16], [17, 18]]
    assert made.fingerprint != bare.fingerprint


def test_rows_are_cut_from_the_right_and_full_prompts_dropped():
    made = Completions.from_texts(PROMPTS, COMPLETIONS, tiny.tokenizer(), max_length=4)
    assert made.prompt_ids == [[1, 5, 6], [1, 7]]
    assert made.completion_ids == [[13], [14, 15]]
    assert made.dropped == 1


def test_fingerprint_sees_where_the_completion_begins():
    assert Completions([[1, 2]], [[3]]).fingerprint != Completions([[1]], [[2, 3]]).fingerprint
    assert Completions([[1, 2]], [[3]]).fingerprint == Completions([(1, 2)], [(3,)]).fingerprint


def test_tokenizer_is_not_changed():
    tokenizer = tiny.tokenizer()
    tokenizer(["w1 w2", "w3"], padding="max_length", truncation=True, max_length=17)  # sets both on the fast tokenizer
    before = tokenizer.backend_tokenizer.to_str(), copy.copy(vars(tokenizer))
    Completions.from_texts(PROMPTS, COMPLETIONS, tokenizer, max_length=9)
    assert tokenizer.backend_tokenizer.to_str() == before[0]
    assert vars(tokenizer) == before[1]


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
def test_logprobs_are_those_of_each_prefix(kind):
    model, made = tiny.model(kind), rows()
    logprob_n, tokens_n = completion_logprobs(model, made, batch_size=4)
    assert logprob_n.dtype == torch.float64
    assert tokens_n.tolist() == [len(row) for row in made.completion_ids]
    assert logprob_n.tolist() == pytest.approx([one_by_one(model, made, i) for i in range(len(made))], rel=1e-5)


def test_loss_is_over_tokens_not_over_rows():
    model, made = tiny.model("llama"), rows()
    sums = [one_by_one(model, made, i) for i in range(len(made))]
    tokens = sum(len(row) for row in made.completion_ids)
    assert CompletionLoss(made)(model) == {"loss": pytest.approx(-sum(sums) / tokens, rel=1e-6)}


def test_batch_size_changes_nothing():
    model, made = tiny.model(), rows()
    small, large = (completion_logprobs(model, made, batch_size=size)[0] for size in (1, 100))
    assert small.tolist() == pytest.approx(large.tolist(), rel=1e-6)


def test_dropout_is_off_and_nothing_is_left_behind():
    model, made = tiny.model(attention_dropout=0.5, hidden_dropout=0.5), rows()
    model.gpt_neox.layers[1].eval()
    modes, states = [m.training for m in model.modules()], tiny.random_states()
    first, second = CompletionLoss(made)(model), CompletionLoss(made)(model)
    assert first == second
    assert [m.training for m in model.modules()] == modes
    assert tiny.random_states() == states
    assert all(p.grad is None for p in model.parameters())


def test_of_an_adapted_model_the_adapter_counts():
    base, made = tiny.model("llama"), rows()
    plain = CompletionLoss(made)(base)["loss"]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted = CompletionLoss(made)(model)["loss"]
    assert abs(adapted - plain) > 1e-6
    with model.disable_adapter():
        assert CompletionLoss(made)(model)["loss"] == pytest.approx(plain, rel=1e-6)


def test_under_autocast_no_gradientless_weight_is_kept():
    """Measured between two forward passes inside one autocast region, the second still has gradients."""
    model, made = tiny.model("llama"), rows()
    with torch.autocast("cpu", torch.bfloat16):
        CompletionLoss(made)(model)
        loss = model(input_ids=torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Completions([], []), ValueError, "empty"),
        (lambda: Completions([[1]], []), ValueError, "1 prompt_ids and 0 completion_ids"),
        (lambda: Completions([[1]], [[]]), ValueError, "completion 0 has no tokens"),
        (lambda: Completions([[]], [[1]]), ValueError, "prompt 0 has no tokens"),
        (lambda: Completions([[1]], [[-1]]), ValueError, "token id -1"),
        (lambda: from_texts(max_length=1), ValueError, "max_length=1"),
        (lambda: from_texts(max_length=2), ValueError, "max_length=2 is filled by every prompt"),
        (lambda: from_texts(prompts="w1"), TypeError, "prompts is a single string"),
        (lambda: from_texts(completions=[None] * 3), TypeError, r"completions\[0\] is a NoneType"),
        (lambda: from_texts(completions=["w1"] * 2), ValueError, "3 prompts and 2 completions"),
        (lambda: from_texts(completions=[""] * 3, append_eos=False), ValueError, "completion 0 has no tokens"),
        (lambda: CompletionLoss([[1]]), TypeError, "rows is a list"),
        (lambda: CompletionLoss(rows(), batch_size=0), ValueError, "batch_size=0"),
        (lambda: CompletionLoss(Completions([[1]], [[120]])).check(tiny.model()), ValueError, "token id 120"),
        (lambda: CompletionLoss(Completions([[1]], [[120]]))(tiny.model()), ValueError, "token id 120"),
        (lambda: CompletionLoss(Completions([[1]], [[5] * 64])).check(tiny.model("gpt2")), ValueError, "64 positions"),
        (lambda: CompletionLoss(rows()).check(tiny.model().gpt_neox), ValueError, "no language-model head"),
        (lambda: CompletionLoss(rows()).check(torch.nn.Linear(1, 1)), ValueError, "no causal language model"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def from_texts(**changes):
    settings = {"prompts": PROMPTS, "completions": COMPLETIONS, "tokenizer": tiny.tokenizer(), "max_length": 9}
    return Completions.from_texts(**(settings | changes))


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="append_eos=False"):
        from_texts(tokenizer=tokenizer)
