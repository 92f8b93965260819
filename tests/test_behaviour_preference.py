"""Preference from log-probabilities, worked by hand, and of a model against its own logits."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from geomcallbacks.behaviour import Completions, PreferenceScore, completion_logprobs, preference

CHOSEN = torch.tensor([-2.0, -6.0, -3.0], dtype=torch.float64)
REJECTED = torch.tensor([-4.0, -5.0, -3.0], dtype=torch.float64)
TOKENS = torch.tensor([2, 6, 3]), torch.tensor([2, 2, 2])


def test_hand_worked():
    scores = preference(CHOSEN, REJECTED, *TOKENS)
    assert scores == {
        "accuracy": 1.5 / 3,
        "margin": pytest.approx((2 - 1 + 0) / 3),
        "accuracy_per_token": 3 / 3,  # −1 > −2, −1 > −2.5, −1 > −1.5
        "margin_per_token": pytest.approx((1 + 1.5 + 0.5) / 3),
    }


def test_reward_is_relative_to_the_reference():
    reference = torch.tensor([-1.0, -9.0, -3.0]), torch.tensor([-2.0, -5.0, -4.0])
    scores = preference(CHOSEN, REJECTED, *TOKENS, reference)
    # rewards: chosen −1, 3, 0; rejected −2, 0, 1
    assert scores["reward_accuracy"] == pytest.approx(2 / 3)
    assert scores["reward_margin"] == pytest.approx((1 + 3 - 1) / 3)


def test_a_nan_is_no_preference():
    scores = preference(torch.tensor([math.nan, -1.0]), torch.tensor([-2.0, -2.0]), torch.ones(2), torch.ones(2))
    assert all(math.isnan(value) for value in scores.values())


def pairs():
    prompts = tiny.texts(7, words=4)
    rows = [tiny.texts(7, words=words, seed=words) for words in (5, 8)]
    return [Completions.from_texts(prompts, texts, tiny.tokenizer(), max_length=30) for texts in rows]


def test_score_of_a_model_and_its_reference():
    chosen, rejected = pairs()
    model, reference = tiny.model("llama"), tiny.model("llama", seed=1)
    scores = PreferenceScore(chosen, rejected, batch_size=3, reference=reference)(model)
    found = {}
    for name, rows in (("chosen", chosen), ("rejected", rejected)):
        for kind, net in (("policy", model), ("reference", reference)):
            found[kind, name] = torch.tensor([one_by_one(net, rows, index) for index in range(7)])
    margin = found["policy", "chosen"] - found["policy", "rejected"]
    reward = margin - (found["reference", "chosen"] - found["reference", "rejected"])
    assert scores["margin"] == pytest.approx(float(margin.mean()), abs=1e-5)
    assert scores["accuracy"] == float((margin > 0).double().mean())
    assert scores["reward_margin"] == pytest.approx(float(reward.mean()), abs=1e-5)
    assert scores["reward_accuracy"] == float((reward > 0).double().mean())
    given = tuple(completion_logprobs(reference, rows)[0] for rows in (chosen, rejected))
    assert PreferenceScore(chosen, rejected, reference=given)(model)["reward_margin"] == pytest.approx(
        scores["reward_margin"], abs=1e-5
    )


def one_by_one(model, rows, index):
    """Token by token, a forward pass for each prefix."""
    ids, total = list(rows.prompt_ids[index]), 0.0
    for token in rows.completion_ids[index]:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
        ids.append(token)
    return total


def test_of_the_model_itself_as_reference_no_reward():
    chosen, rejected = pairs()
    model = tiny.model()
    scores = PreferenceScore(chosen, rejected, reference=model)(model)
    assert scores["reward_margin"] == 0.0
    assert scores["reward_accuracy"] == 0.5


def test_bad_pairs_are_refused():
    chosen, rejected = pairs()
    shorter = Completions(rejected.prompt_ids[:-1], rejected.completion_ids[:-1])
    turned = Completions(rejected.prompt_ids[::-1], rejected.completion_ids[::-1])
    with pytest.raises(ValueError, match="7 chosen and 6 rejected"):
        PreferenceScore(chosen, shorter)
    with pytest.raises(ValueError, match="pair 0 has two prompts"):
        PreferenceScore(chosen, turned)
    with pytest.raises(TypeError, match=r"chosen is a list.*from_texts"):
        PreferenceScore(["a"], rejected)
    with pytest.raises(ValueError, match="batch_size=0"):
        PreferenceScore(chosen, rejected, batch_size=0)
    with pytest.raises(ValueError, match="each of the 7 pairs"):
        PreferenceScore(chosen, rejected, reference=(torch.zeros(6), torch.zeros(7)))
    with pytest.raises(TypeError, match="reference is a str"):
        PreferenceScore(chosen, rejected, reference="base")
