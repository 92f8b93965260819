"""The phases of a run from its curve of RankMe: warm-up, entropy-seeking, compression-seeking (Li et al. 2025).

The paper gives no rule. Ours, on ln RankMe over the order of the measurements:

1. *Noise.* Its standard deviation is estimated from the curve itself: the distance of each point to the line between
   its neighbours (over log updates; update 0 stands half a decade before the first positive one), the largest tenth
   left out; at least 1 %.
2. *Stretches.* The curve is described by stretches that rise and fall in turn. A further turning point is accepted if
   it improves the description by more than noise would, found by search, in nineteen of twenty curves that have none
   (`turning.py`), and if every stretch spans two measurements and rises or falls by 5 % or more. A stretch between two
   others spans a factor of two in updates or more: phases are told apart on a logarithmic axis, and a bump within a
   collapse is none.
3. *Names.* A rise is entropy-seeking, a fall compression-seeking, wherever it stands; so is a late rise entropy-seeking
   again. Only the first stretch of a run can be warm-up: if it falls, and the run starts from random weights.
   Where that is not said (`from_scratch=None`), a fall is warm-up if the curve starts at update 0; or if it starts
   within the first thousandth of the curve (the published checkpoints of a run begin at update 8, or at 4e8 tokens)
   and RankMe rises behind it. No curve shows whether its first weights were random: whoever watches a fine-tuning
   run from its update 0 says ``from_scratch=False``.
4. *Boundaries.* A phase ends at the measurement at which the best description turns; on a noisy summit that need not be
   the very highest value. Its interval spans the turning points whose description is worse by less than 3.84 noise
   variances (profile likelihood, nominally 95 %).

α decides nothing: in the published curves it turns well before RankMe does. Each phase says how α moved within it, by
the same test, and whether that agrees (opposite to RankMe).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from geomcallbacks.phases.turning import Array, Stretch, direction, noise, stretches
from geomcallbacks.statistics import finite

#: Phases in the order of their numbers.
PHASE_NAMES = ("warm-up", "entropy-seeking", "compression-seeking")
#: Measurements without which no phase is looked for.
FEWEST_POINTS = 6

_NOISE_FLOOR = 0.01  # of ln RankMe: what a fixed probe scatters from update to update in a small run
_LEAST_CHANGE = 0.05  # of ln RankMe
_MOST_POINTS = 200
_LEAST_SPAN = math.log10(2)  # decades, of a phase between two others
_LEAST_STEP = 1e-300  # the logarithm of what is less has no half decade below it
_BEFORE_FIRST = 0.5  # decades from update 0 to the first positive update
_NEAR_START = 1e-3  # share of the curve's updates
_ALPHA_WAYS = {1: "rises", -1: "falls", 0: "flat"}


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        name: one of `PHASE_NAMES`.
        start, end: updates (or tokens) of its first and last measurement; a phase starts where the one before ends.
        start_interval, end_interval: (low, high) between which the boundary lies; None at an end of the curve.
        rankme_start, rankme_end: RankMe as measured at `start` and `end`.
        alpha: how α moves meanwhile: "rises", "falls" or "flat" (within its noise); None where α was not given.
    """

    name: str
    start: float
    end: float
    start_interval: tuple[float, float] | None
    end_interval: tuple[float, float] | None
    rankme_start: float
    rankme_end: float
    alpha: str | None = None

    @property
    def number(self) -> int:
        """0, 1 or 2: what a tracker is given."""
        return PHASE_NAMES.index(self.name)

    @property
    def agrees(self) -> bool | None:
        """Whether α moves opposite to RankMe; None where α is flat or was not given."""
        if self.alpha in (None, "flat"):
            return None
        return (self.alpha == "falls") == (self.rankme_end > self.rankme_start)

    def describe(self, unit: str = "update") -> str:
        """Say it in words: "entropy-seeking since update 32 (24–42): RankMe 3.7 → 5.1"."""
        interval = "" if self.start_interval is None else " ({:,g}–{:,g})".format(*self.start_interval)
        change = f"RankMe {self.rankme_start:.4g} → {self.rankme_end:.4g}"
        return f"{self.name} since {unit} {self.start:,g}{interval}: {change}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return vars(self) | {"number": self.number, "agrees": self.agrees}


def find_phases(
    steps: Sequence[float],
    rankme: Sequence[float | None],
    alpha: Sequence[float | None] | None = None,
    *,
    from_scratch: bool | None = None,
) -> list[Phase]:
    """Return the phases of a curve, in order. The rule stands at the head of this module.

    Args:
        steps: (n,) updates or tokens, in any order; where one comes twice, the later value counts.
        rankme: (n,) its values; None and NaN are passed over.
        alpha: (n,) α at the same steps, where known.
        from_scratch: True: a first fall is warm-up. False: it is compression-seeking, as in a run from trained weights.
            None: the curve decides.

    Returns:
        Phases that touch each other; none where the curve has fewer than `FEWEST_POINTS` values or is flat.

    Raises:
        ValueError: lengths differ, a step is negative, or a value is text or not positive.
    """
    points = _points(steps, rankme, [None] * len(steps) if alpha is None else alpha)
    if len(points) < FEWEST_POINTS:
        return []
    steps_n, rankme_n, alpha_n = _thinned(np.array(points)).T
    places, heights = _places(steps_n), np.log(rankme_n)
    found = stretches(heights, noise(places, heights, _NOISE_FLOOR), _LEAST_CHANGE, _short(places))
    names = [PHASE_NAMES[1 if stretch.rises else 2] for stretch in found]
    if found and not found[0].rises and _warms_up(steps_n, len(found), from_scratch):
        names[0] = PHASE_NAMES[0]
    at, height = steps_n.tolist(), rankme_n.tolist()
    return [
        Phase(
            name=name,
            start=at[s.first],
            end=at[s.last],
            start_interval=_interval(at, s.first_range),
            end_interval=_interval(at, s.last_range),
            rankme_start=height[s.first],
            rankme_end=height[s.last],
            alpha=way,
        )
        for name, s, way in zip(names, found, _alpha_ways(places, alpha_n, found), strict=True)
    ]


@dataclass(frozen=True)
class PhaseChange:
    """What a measurement has changed; as text (`str`), what is said of it.

    Attributes:
        kind: "began": the run has passed into `phase`. "withdrawn": it turns out not to have.
        phase: the phase that began, or the one that did not last.
        name: the phase in which the run is now; None where the curve shows none.
    """

    kind: Literal["began", "withdrawn"]
    phase: Phase
    name: str | None

    def __str__(self) -> str:
        if self.kind == "began":
            return self.phase.describe()
        now = "in no phase" if self.name is None else f"still {self.name}"
        return f"{now}: {self.phase.name} since update {self.phase.start:,g} did not last"


def phase_change(before: Sequence[Phase], now: Sequence[Phase]) -> PhaseChange | None:
    """Compare the phases of a curve before and after a measurement.

    Returns:
        The change of the phase in which the run is. None where there is none, also where only the past was read anew.
    """
    old, new = [phase.name for phase in before], [phase.name for phase in now]
    if old == new or (len(new) == len(old) + 1 and new[-1:] == old[-1:]):
        return None
    name = new[-1] if new else None
    if len(new) >= len(old):
        return PhaseChange("began", now[-1], name)
    return PhaseChange("withdrawn", next(phase for phase in reversed(before) if phase.name != name), name)


class PhaseTracker:
    """The phases of a run while it goes on: `find_phases` over what has been measured so far.

    Each measurement is another look, and each look has its one chance in twenty. Of runs that were nothing but noise of
    3 or 10 %, a quarter were told of a phase at some time that was then taken back; of collapses and expansions as in
    the published curves with 1 %, which is what small runs have, none.

    Args:
        from_scratch: as in `find_phases`.

    Attributes:
        phases: those of the curve so far; the last one goes on.
    """

    def __init__(self, from_scratch: bool | None = None) -> None:
        self.from_scratch = from_scratch
        self.phases: list[Phase] = []
        self._points: list[tuple[int, float | None]] = []

    @property
    def name(self) -> str | None:
        """The phase in which the run is; None where the curve does not show one yet."""
        return self.phases[-1].name if self.phases else None

    def add(self, step: int, rankme: float | None) -> PhaseChange | None:
        """Take in a measurement, drop what was known of this update or later ones, and return what that changes."""
        before = self.phases
        self.load([*(point for point in self._points if point[0] < step), (step, rankme)])
        return phase_change(before, self.phases)

    def load(self, points: Sequence[tuple[int, float | None]]) -> None:
        """Take in what a resumed run has measured: (step, RankMe)."""
        self._points = list(points)
        steps, values = [step for step, _ in points], [value for _, value in points]
        self.phases = find_phases(steps, values, from_scratch=self.from_scratch)


def _points(
    steps: Sequence[float], rankme: Sequence[float | None], alpha: Sequence[float | None]
) -> list[tuple[float, float, float]]:
    """Return (step, RankMe, α or NaN) in order of the steps, without those that have no RankMe."""
    if not len(steps) == len(rankme) == len(alpha):
        sizes = f"{len(steps)} steps, {len(rankme)} values of RankMe, {len(alpha)} of α"
        raise ValueError(f"{sizes}: give one of each for every measurement")
    points: dict[float, tuple[float, float, float]] = {}
    for step, value, slope in zip(steps, rankme, alpha, strict=True):
        place, height, way = finite(step), finite(value), finite(slope)
        if place is None or place < 0 or 0 < place < _LEAST_STEP:
            raise ValueError(f"steps hold {step!r:.40}: give updates or tokens, counted from 0")
        if isinstance(value, str) or (height is not None and height <= 0):
            raise ValueError(f"rankme is {value} at step {step}: RankMe is a positive number")
        if height is not None:
            points[place] = (place, height, math.nan if way is None else way)
    return [points[step] for step in sorted(points)]


def _places(steps_n: Array) -> Array:
    """Return log₁₀ of the steps; step 0 half a decade before the first positive one."""
    first = steps_n[1] * 10**-_BEFORE_FIRST if steps_n[0] == 0 else steps_n[0]
    places: Array = np.log10(np.maximum(steps_n, first))
    return places


def _thinned(points_n3: Array) -> Array:
    """Return at most 200 points and the first one: the last in each 200th part of the log updates.

    The search is quadratic.
    """
    if len(points_n3) <= _MOST_POINTS:
        return points_n3
    places = _places(points_n3[:, 0])
    cells = np.floor((places - places[0]) / (places[-1] - places[0]) * (_MOST_POINTS - 1))
    cells[0] = -1
    kept: Array = points_n3[np.append(np.diff(cells) > 0, True)]
    return kept


def _short(places: Array) -> NDArray[np.bool_]:
    """Return (n, n) whether the points i … j, between others, span too little for a phase."""
    number = np.arange(len(places))
    inner = (number[:, None] > 0) & (number[None, :] < len(places) - 1)
    found: NDArray[np.bool_] = inner & (places[None, :] - places[:, None] < _LEAST_SPAN - 1e-9)
    return found


def _warms_up(steps_n: Array, count: int, from_scratch: bool | None) -> bool:
    """Whether a curve of `count` stretches, whose first one falls, falls by warming up."""
    if from_scratch is not None:
        return from_scratch
    return bool(steps_n[0] == 0) or (count > 1 and bool(steps_n[0] <= _NEAR_START * steps_n[-1]))


def _alpha_ways(places: Array, alpha_n: Array, found: list[Stretch]) -> list[str | None]:
    """Return how α moves within each stretch."""
    known = np.isfinite(alpha_n)
    if not known.any():
        return [None] * len(found)
    alpha_n = alpha_n / max(1.0, float(np.abs(alpha_n[known]).max()))  # a square must stay within float64
    sigma = noise(places[known], alpha_n[known], max(_NOISE_FLOOR * float(np.median(np.abs(alpha_n[known]))), 1e-12))
    inside = [alpha_n[stretch.first : stretch.last + 1] for stretch in found]
    inside = [values[np.isfinite(values)] for values in inside]
    return [_ALPHA_WAYS[direction(values, sigma)] if len(values) > 1 else None for values in inside]


def _interval(steps: list[float], indices: tuple[int, int] | None) -> tuple[float, float] | None:
    return None if indices is None else (steps[indices[0]], steps[indices[1]])
