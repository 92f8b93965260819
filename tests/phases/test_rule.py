"""The rule on hand-worked curves, on the published ones under noise, and on monotone ones."""

from __future__ import annotations

import math

import numpy as np
import published_curves
import pytest
from demo_curve import DEMO

from geomcallbacks import find_phases

WARM, ENTROPY, COMPRESS = "warm-up", "entropy-seeking", "compression-seeking"
STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
LATER = [1000 + step for step in STEPS]
DOWN, UP = [100 * 0.8**k for k in range(10)], [20 * 1.2**k for k in range(10)]
VALLEY, SUMMIT = [*DOWN[:5], *UP[4:9]], [*UP[:5], *DOWN[4:9]]


def names(*curve, **settings):
    return [phase.name for phase in find_phases(*curve, **settings)]


def test_demo_run_has_three_phases() -> None:
    warm, entropy, compress = found = find_phases(*zip(*DEMO, strict=True))
    assert [(phase.name, phase.number, phase.alpha, phase.agrees) for phase in found] == [
        (WARM, 0, "rises", True),
        (ENTROPY, 1, "falls", True),
        (COMPRESS, 2, "rises", True),
    ]
    assert [(phase.start, phase.end) for phase in found] == [(0, 32), (32, 2560), (2560, 8000)]
    assert [(phase.rankme_start, phase.rankme_end) for phase in (warm, entropy)] == [(20.48, 3.72), (3.72, 21.52)]
    assert (warm.start_interval, compress.end_interval) == (None, None)
    assert warm.end_interval == entropy.start_interval == (24, 42)
    low, high = entropy.end_interval
    assert 960 < low < 2560 < high < 4000
    assert entropy.describe() == "entropy-seeking since update 32 (24–42): RankMe 3.72 → 21.52"


@pytest.mark.parametrize(
    ("steps", "rankme", "from_scratch", "wanted"),
    [
        (STEPS[1:], DOWN[1:], None, [COMPRESS]),  # starts near 0, but nothing shows that it warms up
        (STEPS, DOWN, False, [COMPRESS]),
        (LATER, DOWN, True, [WARM]),
        (STEPS, VALLEY, None, [WARM, ENTROPY]),
        (STEPS, VALLEY, False, [COMPRESS, ENTROPY]),
        ([8, 64, 128, 256, 512, 1000, 5000, 10000, 50000, 143000], VALLEY, None, [WARM, ENTROPY]),
        ([8, 64, 128, 256, 512, 600, 700, 800, 900, 1000], VALLEY, None, [COMPRESS, ENTROPY]),
        (STEPS, SUMMIT, True, [ENTROPY, COMPRESS]),  # only a first fall can be warm-up
        (STEPS, [50 + 0.1 * k for k in range(10)], None, []),
        ([], [], None, []),
        (STEPS[:5], DOWN[:5], None, []),
        (STEPS[:6], DOWN[:6], None, [WARM]),
    ],
)
def test_names(steps, rankme, from_scratch, wanted) -> None:
    assert names(steps, rankme, from_scratch=from_scratch) == wanted


def test_a_bump_within_a_collapse_is_no_phase() -> None:
    steps = [0, 1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32, 42, 56, 75, 100, 133, 178, 237, 316, 422, 562, 750, 1000]
    heights = np.concatenate([np.linspace(3.3, 0.4, 12), np.linspace(0.6, 3.6, 12)])
    heights[8:11] = [0.40, 0.75, 0.55]  # 13, 18, 24: down, up by 40 %, down again to 0.4 at 32
    found = find_phases(steps, np.exp(heights))
    assert [(phase.name, phase.end) for phase in found] == [(WARM, 32), (ENTROPY, 1000)]
    # As far apart as phases are, the same bump is one.
    assert names([0, *(3**k for k in range(23))], np.exp(heights)) == [WARM, ENTROPY, COMPRESS, ENTROPY]


@pytest.mark.parametrize(("ratio", "wanted"), [(0.96, [ENTROPY]), (0.94, [ENTROPY, COMPRESS, ENTROPY])])
def test_wiggle_below_five_percent_is_no_phase(ratio: float, wanted: list[str]) -> None:
    """Without noise and of many points, so that its size alone decides."""
    curve = np.exp(np.interp(np.arange(90), [0, 11, 78, 89], np.log([10, 50, 50 * ratio, 90])))
    assert names(np.geomspace(1, 1e4, 90), curve) == wanted


def test_values_that_are_missing_are_passed_over() -> None:
    """In any order."""
    more = [*DEMO, (5, None, 1.0), (90, math.nan, 2.0), (7000, math.inf, None)]
    mixed = [more[i] for i in np.random.default_rng(0).permutation(len(more))]
    assert find_phases(*zip(*mixed, strict=True)) == find_phases(*zip(*DEMO, strict=True))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda k, a: None if k % 5 == 0 else a, [("rises", True), ("falls", True), ("rises", True)]),
        (lambda k, a: 5 - a, [("falls", False), ("rises", False), ("falls", False)]),
        (lambda k, a: 1.0, [("flat", None)] * 3),
        (lambda k, a: None, [(None, None)] * 3),
    ],
    ids=["gaps", "mirrored", "level", "not known"],
)
def test_alpha_may_disagree_stand_still_or_lack(change, wanted) -> None:
    steps, rankme, alpha = zip(*DEMO, strict=True)
    found = find_phases(steps, rankme, [change(k, a) for k, a in enumerate(alpha)])
    assert [(phase.alpha, phase.agrees) for phase in found] == wanted


def test_steps_and_values_of_differing_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 steps, 2 values of RankMe"):
        find_phases([0, 1, 2], [1.0, 2.0])


def test_dense_curve_is_thinned_evenly_in_log_updates() -> None:
    """5,000 measurements of a curve whose first phase is over after 32 updates."""
    steps = np.arange(5001)
    clean = np.interp(np.log(steps + 1), np.log([1, 33, 1500, 5001]), np.log([20, 4, 21, 17]))
    warm, entropy, compress = found = find_phases(
        steps, np.exp(clean + 0.02 * np.random.default_rng(0).normal(size=5001))
    )
    assert [phase.name for phase in found] == [WARM, ENTROPY, COMPRESS]
    assert (warm.start, compress.end) == (0, 5000)
    assert 28 <= warm.end <= 36
    assert 1000 <= entropy.end <= 2200


@pytest.mark.parametrize("grid", published_curves.GRIDS)
@pytest.mark.parametrize("name", published_curves.CURVES)
def test_published_curves(name: str, grid: str) -> None:
    """`python tests/published_curves.py` draws 1,000.

    OLMo's late rise spans 5 of 60 samples that are even in log tokens. Whoever knew both shapes would tell it from a
    level end in 91 % of draws, at one false alarm in twenty; nothing then is to be found in 95 %.
    """
    found = published_curves.count(name, grid, draws=100)
    if (name, grid) == ("OLMo-2-7B", "even in log"):
        assert 0.4 <= found.named / found.draws <= 0.91
        return
    assert found.named >= 0.95 * found.draws
    assert found.peaked >= 0.95 * found.draws
    assert found.covered >= 0.95 * found.named


MONOTONE = {
    "rise": (lambda x: 50 * x**0.4, [ENTROPY]),
    "slow rise": (lambda x: 50 * x**0.1, [ENTROPY]),
    "rise, then level": (lambda x: 50 * np.minimum(x, 100) ** 0.4, [ENTROPY]),
    "fall": (lambda x: 900 * x**-0.4, None),
    "level, then fall": (lambda x: 900 * np.maximum(x, 100) ** -0.4, None),
    "level": (lambda x: np.full_like(x, 300.0), []),
}


@pytest.mark.parametrize("start", [0.0, 1000.0])
@pytest.mark.parametrize("kind", MONOTONE)
def test_monotone_curves_have_no_other_phase(kind: str, start: float) -> None:
    curve, wanted = MONOTONE[kind]
    generator = np.random.default_rng([3, sorted(MONOTONE).index(kind)])
    x = np.geomspace(1, 1e4, 60)
    steps = x * max(start, 1.0)
    steps[0] = start
    wanted = [WARM if start == 0 else COMPRESS] if wanted is None else wanted
    right = sum(names(steps, curve(x) * np.exp(0.1 * generator.standard_normal(60))) == wanted for _ in range(100))
    assert right >= 95
