"""Scores of completions, worked by hand."""

from __future__ import annotations

import math

import pytest
import tiny

from geomcallbacks.behaviour import Rollouts, RolloutScore


def score(**changes):
    settings = dict(
        prompts=["w1", "w2"],
        reward=lambda text, p: float(text.split()[-1] == f"w{p + 5}") if text else 0.5,
        tokenizer=tiny.tokenizer(),
        answer=lambda text: text.split()[-1] if text else None,
        samples=4,
        max_new_tokens=6,
        ks=(1, 2),
    )
    return RolloutScore(**(settings | changes))


ROLLOUTS = Rollouts(
    prompts=["w1", "w2"],
    completions=[["w5", "w5", "w9 w6", ""], ["w6 w6 w6", "w6", "w6", "w6 w6"]],
    token_ids=[[1]] * 8,
    completion_tokens=[[1, 1, 2, 0], [3, 1, 1, 2]],
)


def test_scores_by_hand():
    found = score().evaluate(ROLLOUTS)
    assert found == {
        "reward": pytest.approx((1 + 1 + 0 + 0.5 + 4) / 8),
        "pass@1": pytest.approx((2 / 4 + 1) / 2),
        "pass@2": pytest.approx((1 - 1 / 6 + 1) / 2),
        "distinct_answers": pytest.approx((3 / 4 + 1 / 4) / 2),
        "answer_entropy": pytest.approx(1.5 * math.log(2) / 2),
        "distinct_1": pytest.approx((3 / 4 + 1 / 7) / 2),
        "distinct_2": pytest.approx((1 / 1 + 1 / 3) / 2),
        "no_answer": 1 / 8,
        "length": 11 / 8,
    }


def test_self_bleu_only_where_asked_for():
    alike = Rollouts(["w1", "w2"], [["a b c d", "a b c d", "z", "z"]] * 2, [[1]] * 8, [[4, 4, 1, 1]] * 2)
    assert score(self_bleu_samples=2).evaluate(alike)["self_bleu"] == pytest.approx(1.0)
    assert score(self_bleu_samples=4).evaluate(alike)["self_bleu"] == pytest.approx(0.5)


def test_no_bigrams_is_no_value():
    short = Rollouts(["w1", "w2"], [["a"] * 4] * 2, [[1]] * 8, [[1] * 4] * 2)
    assert math.isnan(score().evaluate(short)["distinct_2"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ks": (1, 5)}, ValueError, r"ks=\(1, 5\).*samples=4"),
        ({"ks": (0,)}, ValueError, r"ks=\(0,\)"),
        ({"reward": None}, TypeError, "reward is a NoneType"),
        ({"answer": 3}, TypeError, "answer is a int"),
        ({"self_bleu_samples": 1}, ValueError, "self_bleu_samples=1"),
    ],
)
def test_bad_settings_are_refused_at_construction(changes, error, message):
    with pytest.raises(error, match=message):
        score(**changes)


def test_rollouts_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="other prompts"):
        score(prompts=["w1", "w3"]).evaluate(ROLLOUTS)
