"""At which updates geometry is measured, and within what share of the training time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

#: Without `every`, the run is measured about so many times behind its log-spaced beginning.
_MEASUREMENTS_PER_RUN = 50


@dataclass(frozen=True)
class Schedule:
    """Log-spaced at first, then every so many updates; the first, the last and those in `at` always.

    Attributes:
        every: updates between measurements once log spacing has grown as wide. None: a fiftieth of the run, where its
            length is known; where it is not, spacing stays logarithmic.
        per_decade: log-spaced measurements for every tenfold of updates, while that is denser than `every`. 0: none.
        at: updates that are measured in any case.
        budget: share of the projected training time that the measurements outside `at`, the first and the last may
            take, such as 0.01. None: no bound.

    Raises:
        ValueError: a value is out of its range.
    """

    every: int | None = None
    per_decade: int = 8
    at: tuple[int, ...] = ()
    budget: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(sorted(self.at)))
        if self.every is not None and self.every < 1:
            raise ValueError(
                f"every={self.every}: give a positive number of updates, or None for a fiftieth of the run"
            )
        if self.per_decade < 0:
            raise ValueError(f"per_decade={self.per_decade}: give 0 or a positive number of measurements per tenfold")
        if any(step != int(step) or step < 0 for step in self.at):
            raise ValueError(f"at={self.at}: updates are whole numbers, counted from 0")
        if self.budget is not None and not 0.0 < self.budget <= 1.0:
            raise ValueError(f"budget={self.budget}: give a share of the training time between 0 and 1, or None")

    def is_fixed(self, step: int, total: int | None = None) -> bool:
        """Whether `step` is measured whatever the budget: the first, the last, those in `at`."""
        return step == 0 or step == total or step in self.at

    def is_due(self, step: int, total: int | None = None) -> bool:
        """Whether the weights after `step` updates are measured, in a run of `total` updates (None: unknown)."""
        if self.is_fixed(step, total):
            return True
        every = self.every
        if every is None and total is not None:
            every = max(1, total // _MEASUREMENTS_PER_RUN)
        if every is not None and (self.per_decade == 0 or step * (10 ** (1 / self.per_decade) - 1) >= every):
            return step % every == 0
        return self.per_decade > 0 and self._is_log_spaced(step)

    def steps(self, total: int) -> list[int]:
        """All updates at which a run of `total` updates is measured."""
        return [step for step in range(total + 1) if self.is_due(step, total)]

    def _is_log_spaced(self, step: int) -> bool:
        return _log_index(step, self.per_decade) != _log_index(step - 1, self.per_decade)


def _log_index(step: int, per_decade: int) -> int:
    """How many of the points round(10^(k/per_decade)), k = 0, 1, …, are at or below `step`."""
    k = 0
    while round(10 ** (k / per_decade)) <= step:
        k += 1
    return k


class Ledger:
    """What measuring has cost and may cost, so that `Schedule.budget` is kept.

    Time is passed in, in seconds, never read here. The projected training time is the known number of updates times
    the median update, or the time trained so far where that number is unknown. The allowance may be spent early: a
    warm-up is measured densely or not at all.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.optional_seconds = 0.0
        self.fixed_seconds = 0.0
        self.training_seconds = 0.0
        self.skipped = 0
        self._updates: deque[float] = deque(maxlen=101)
        self._last_cost = 0.0

    def trained(self, seconds: float, updates: int) -> None:
        """Record that so many updates took so long, measuring not included."""
        if updates > 0:
            self.training_seconds += seconds
            self._updates.append(seconds / updates)

    def measured(self, seconds: float, fixed: bool) -> None:
        """Record the cost of a measurement."""
        self._last_cost = seconds
        if fixed:
            self.fixed_seconds += seconds
        else:
            self.optional_seconds += seconds

    def allows(self, total: int | None) -> bool:
        """Whether an optional measurement, at the cost of the last one, still fits the budget."""
        if self.budget is None:
            return True
        projected = self.training_seconds
        if total is not None and self._updates:
            projected = max(projected, total * median(self._updates))
        return self.optional_seconds + self._last_cost <= self.budget * projected
