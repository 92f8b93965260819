"""Intervals, verdicts and slopes against scipy and hand-worked values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from contrasts.verdicts import (
    OVERTRAINING,
    STATEMENTS,
    T_975,
    Statement,
    crossing,
    interval,
    judge,
    of_stage,
    slope,
    verdict,
)
from contrasts.verdicts import shown as shown_of

UP = Statement("sft", "RankMe", "geometry/general/rankme", +1, "RankMe rises")


def test_quantiles_are_those_of_students_t() -> None:
    assert scipy.stats.t.ppf(0.975, range(1, 31)) == pytest.approx(T_975, abs=1e-6)
    assert len(T_975) == 30


@pytest.mark.parametrize("count", [2, 3, 5, 31])
def test_interval_is_that_of_a_one_sample_t_test(count: int) -> None:
    differences = list(np.random.default_rng(count).normal(0.3, 1.0, count))
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert interval(differences) == pytest.approx((np.mean(differences), expected.low, expected.high), abs=1e-6)


def test_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, t(2 degrees of freedom) 4.302653: 2 -+ 4.302653 / sqrt(3).
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 32])
def test_interval_of_too_few_or_too_many_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"differences has {count} values: an interval takes 2 to 31 seeds"):
        interval([1.0] * count)


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        (+1, 0.1, 0.5, "reproduced"),
        (-1, 0.1, 0.5, "opposite"),
        (+1, -0.5, -0.1, "opposite"),
        (-1, -0.5, -0.1, "reproduced"),
        (+1, -0.1, 0.5, "inconclusive"),
        (-1, -0.5, 0.1, "inconclusive"),
        (+1, 0.0, 0.5, "inconclusive"),  # zero is not excluded
        (-1, -0.5, 0.0, "inconclusive"),
        (+1, None, None, "inconclusive"),
    ],
)
def test_verdict(direction: int, low: float | None, high: float | None, expected: str) -> None:
    assert verdict(direction, low, high) == expected


def test_what_has_no_direction_is_not_judged() -> None:
    with pytest.raises(ValueError, match="direction=0"):
        verdict(0, 1.0, 2.0)
    assert judge(Statement("sft", "RankMe", "geometry/task/rankme"), [1.0, 1.0], [2.0, 2.1]).verdict is None


def test_judge_pairs_by_seed() -> None:
    finding = judge(UP, [10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert finding.changes == [1.0, 2.0, 3.0]
    assert (finding.mean, finding.low, finding.high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)
    assert finding.verdict == "inconclusive"
    # Seeds differ widely, their changes hardly: unpaired, this would be inconclusive.
    assert judge(UP, [10.0, 20.0, 30.0], [11.0, 21.1, 30.9]).verdict == "reproduced"


def test_a_seed_that_lacks_the_number_is_left_out() -> None:
    finding = judge(UP, [1.0, None, 3.0], [2.0, 5.0, 4.5])
    assert finding.changes == [1.0, None, 1.5]
    assert (finding.mean, finding.low) == pytest.approx((1.25, 1.25 - 12.706205 * 0.25), abs=1e-6)


def test_one_seed_has_no_interval_and_no_verdict_but_inconclusive() -> None:
    finding = judge(UP, [1.0, None], [2.0, None])
    assert (finding.mean, finding.low, finding.high, finding.verdict) == (1.0, None, None, "inconclusive")
    assert judge(UP, [None], [None]).mean is None


def test_the_statements_are_the_papers() -> None:
    directions = {(s.stage, s.source): s.direction for s in STATEMENTS}
    assert directions == {
        ("sft", "geometry/general/rankme"): +1,
        ("sft", "geometry/general/alpha_req"): -1,
        ("sft", "behaviour/id/loss"): -1,
        ("sft", "behaviour/ood/loss"): +1,
        ("dpo", "geometry/general/rankme"): +1,
        ("dpo", "geometry/general/alpha_req"): -1,
        ("dpo", "behaviour/preference/accuracy"): +1,
        ("dpo", "behaviour/ood/loss"): +1,
        ("grpo", "geometry/general/rankme"): -1,
        ("grpo", "geometry/general/alpha_req"): +1,
        ("grpo", "many/reward"): +1,
        ("grpo", "many/distinct_answers"): -1,
        ("grpo", "many/pass@256"): -1,
    }
    assert {s.source: s.direction for s in OVERTRAINING} == {
        "id/tokens": -1,
        "ood/tokens": +1,
        "id/rankme": -1,
        "ood/rankme": +1,
    }


def test_stages_from_the_base_have_the_same_statements_under_their_own_name() -> None:
    assert [s.source for s in of_stage("grpo_base")] == [s.source for s in of_stage("grpo")]
    assert {s.stage for s in of_stage("grpo_base")} == {"grpo_base"}


def test_nothing_is_both_judged_and_shown() -> None:
    for stage in ("sft", "dpo", "grpo"):
        shown = {s.source for s in shown_of(stage)}
        assert not shown & {s.source for s in of_stage(stage)}
        assert {"geometry/general/top1_share", "geometry/task/rankme", "behaviour/general/loss"} <= shown


def test_slope() -> None:
    assert slope([1.0, 2.0, 4.0], [3.0, 5.0, 9.0]) == pytest.approx(2.0)
    xs, ys = [0.0, 1.0, 2.0, 3.0, 5.0], [1.0, 0.2, 0.7, -1.0, 2.0]
    assert slope(xs, ys) == pytest.approx(scipy.stats.linregress(xs, ys).slope)
    assert slope([2.0, 2.0], [1.0, 5.0]) is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.1, 0.4, 0.9], [0.5, 0.6, 0.7], 2),  # as in the paper: ahead at first, behind in the end
        ([0.5, 0.6, 0.7], [0.1, 0.4, 0.9], 2),
        ([0.1, 0.4, 0.9], [0.1, 0.6, 0.7], 2),  # equal at first
        ([0.1, 0.4, 0.7], [0.5, 0.4, 0.7], None),  # meets, and does not cross
        ([0.1, 0.2], [0.3, 0.4], None),
        ([0.1, 0.2], [0.1, 0.2], None),
    ],
)
def test_crossing(before: list[float], after: list[float], expected: int | None) -> None:
    assert crossing(before, after) == expected
