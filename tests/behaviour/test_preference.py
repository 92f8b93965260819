"""Preference from log-probabilities, worked by hand, and of a model against its own logits."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from behaviour_rows import one_by_one

from geomcallbacks.behaviour import Completions, PreferenceScore, preference

CHOSEN = torch.tensor([-2.0, -6.0, -3.0], dtype=torch.float64)
REJECTED = torch.tensor([-4.0, -5.0, -3.0], dtype=torch.float64)
TOKENS = torch.tensor([2, 6, 3]), torch.tensor([2, 2, 2])


def test_hand_worked():
    reference = torch.tensor([-1.0, -9.0, -3.0]), torch.tensor([-2.0, -5.0, -4.0])
    scores = {
        "accuracy": 1.5 / 3,
        "margin": pytest.approx((2 - 1 + 0) / 3),
        "accuracy_per_token": 3 / 3,  # −1 > −2, −1 > −2.5, −1 > −1.5
        "margin_per_token": pytest.approx((1 + 1.5 + 0.5) / 3),
    }
    assert preference(CHOSEN, REJECTED, *TOKENS) == scores
    # rewards: chosen −1, 3, 0; rejected −2, 0, 1
    rewards = {"reward_accuracy": pytest.approx(2 / 3), "reward_margin": pytest.approx((1 + 3 - 1) / 3)}
    assert preference(CHOSEN, REJECTED, *TOKENS, reference) == scores | rewards


def test_a_nan_is_no_preference():
    scores = preference(torch.tensor([math.nan, -1.0]), torch.tensor([-2.0, -2.0]), torch.ones(2), torch.ones(2))
    assert all(math.isnan(value) for value in scores.values())


def pairs():
    prompts = tiny.texts(7, words=4)
    rows = [tiny.texts(7, words=words, seed=words) for words in (5, 8)]
    return [Completions.from_texts(prompts, texts, tiny.tokenizer(), max_length=30) for texts in rows]


def test_score_of_a_model_and_its_reference():
    model, reference = tiny.model("llama"), tiny.model("llama", seed=1)
    scores = PreferenceScore(*pairs(), batch_size=3, reference=reference)(model)
    (chosen, rejected), (chosen_before, rejected_before) = (
        [
            torch.tensor([one_by_one(net, *row) for row in zip(r.prompt_ids, r.completion_ids, strict=True)])
            for r in pairs()
        ]
        for net in (model, reference)
    )
    for name, difference in (
        ("", chosen - rejected),
        ("reward_", chosen - chosen_before - (rejected - rejected_before)),
    ):
        assert scores[f"{name}margin"] == pytest.approx(float(difference.mean()), abs=1e-5)
        assert scores[f"{name}accuracy"] == float((difference > 0).double().mean())


def test_of_the_model_itself_as_reference_no_reward():
    model = tiny.model()
    scores = PreferenceScore(*pairs(), reference=model)(model)
    assert (scores["reward_margin"], scores["reward_accuracy"]) == (0.0, 0.5)


def test_bad_pairs_are_refused():
    chosen, rejected = pairs()
    with pytest.raises(ValueError, match="7 chosen, 6 rejected"):
        PreferenceScore(chosen, Completions(rejected.prompt_ids[:-1], rejected.completion_ids[:-1]))
    with pytest.raises(ValueError, match="pair 0 has two prompts"):
        PreferenceScore(chosen, Completions(rejected.prompt_ids[::-1], rejected.completion_ids[::-1]))
    with pytest.raises(TypeError, match="reference is a str"):
        PreferenceScore(chosen, rejected, reference="base")
