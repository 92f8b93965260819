"""Loss on completions against a forward pass for each prefix, and how every measure calls a model."""

from __future__ import annotations

import pytest
import tiny
import torch
from behaviour_rows import completions, one_by_one
from peft import LoraConfig, get_peft_model

from geomcallbacks.behaviour import CompletionLoss, completion_logprobs
from geomcallbacks.behaviour.evaluating import evaluating


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
def test_logprobs_are_those_of_each_prefix(kind):
    """Four rows a batch, padded; the loss is over tokens, not over rows."""
    model, made = tiny.model(kind), completions()
    expected = [one_by_one(model, *row) for row in zip(made.prompt_ids, made.completion_ids, strict=True)]
    tokens = [len(row) for row in made.completion_ids]
    logprob_n, tokens_n = completion_logprobs(model, made, batch_size=4)
    assert logprob_n.dtype == torch.float64
    assert logprob_n.tolist() == pytest.approx(expected, rel=1e-5)
    assert tokens_n.tolist() == tokens
    assert CompletionLoss(made)(model) == {"loss": pytest.approx(-sum(expected) / sum(tokens), rel=1e-6)}


def test_of_an_adapted_model_the_adapter_counts():
    base, made = tiny.model("llama"), completions()
    plain = CompletionLoss(made)(base)["loss"]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert abs(CompletionLoss(made)(model)["loss"] - plain) > 1e-6
    with model.disable_adapter():
        assert CompletionLoss(made)(model)["loss"] == pytest.approx(plain, rel=1e-6)


def test_the_autocast_of_training_is_on_but_not_its_cache():
    """In older versions of PyTorch the next update would use a weight that was cached here without gradients."""
    with torch.autocast("cpu", torch.bfloat16), evaluating(tiny.model("llama")):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


@pytest.mark.parametrize(
    ("model", "message"),
    [(tiny.model().gpt_neox, "no language-model head"), (torch.nn.Linear(1, 1), "no causal language model")],
)
def test_what_is_no_language_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        CompletionLoss(completions()).check(model)
