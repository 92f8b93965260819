"""At which updates geometry is measured, and within what share of the training time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, median_low

#: Without `every`, the run is measured about so many times behind its log-spaced beginning.
_MEASUREMENTS_PER_RUN = 50
#: The share of a budget that may be spent at once; the rest comes evenly over the run.
_EARLY = 0.5


@dataclass(frozen=True)
class Schedule:
    """Log-spaced at first, then every so many updates; the first, the last and those in `at` always.

    Attributes:
        every: updates between measurements once log spacing has grown as wide. None: a fiftieth of the run, where its
            length is known; where it is not, spacing stays logarithmic.
        per_decade: log-spaced measurements for every tenfold of updates, while that is denser than `every`. 0: none.
        at: updates that are measured in any case.
        budget: share of the projected training time that the measurements outside `at`, the first and the last may
            take, such as 0.01. Half of it may be spent at once, so that the beginning is measured densely; the other
            half comes evenly over the run, so that its later part is thinned out and not left out. What is skipped
            stands in the record file. None: no bound.

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

    Time is passed in, in seconds, never read here. Where the number of updates is known, the training time is
    projected: what has passed, and the updates left at the median pace of late. Where it is not, it is what has
    passed.

    Args:
        budget: that of the schedule.
        begun: the update from which training time is counted: 0, or where a run goes on of whose past no more is known.
        state: what `state_dict` of an earlier process of the same run gave.
    """

    def __init__(self, budget: float | None, begun: int = 0, state: Mapping[str, float] | None = None) -> None:
        kept = state or {}
        self.budget = budget
        self.begun = int(kept.get("begun", begun))
        self.updates = int(kept.get("updates", 0))
        self.training_seconds = kept.get("training_seconds", 0.0)
        self.optional_seconds = kept.get("optional_seconds", 0.0)
        self.fixed_seconds = kept.get("fixed_seconds", 0.0)
        self._paces: deque[float] = deque(maxlen=9)
        self._costs: deque[float] = deque(maxlen=3)
        self.warm = False  # whether this process's first update is booked
        self._warm_cost = False
        if self.updates > 0:
            self._paces.append(self.training_seconds / self.updates)
        if "cost" in kept:
            self._costs.append(kept["cost"])

    def state_dict(self) -> dict[str, float]:
        """Plain numbers: a run that is stopped and resumed does not get its allowance anew."""
        names = ("begun", "updates", "training_seconds", "optional_seconds", "fixed_seconds")
        return {name: getattr(self, name) for name in names} | ({"cost": self._costs[-1]} if self._costs else {})

    def trained(self, seconds: float, updates: int) -> None:
        """Record that so many updates took so long, measuring not included."""
        if updates <= 0:
            return
        self.training_seconds += seconds
        self.updates += updates
        if self.warm:
            self._paces.append(seconds / updates)
        self.warm = True  # a process's first update compiles and allocates: it is no pace

    def measured(self, seconds: float, fixed: bool) -> None:
        """Record the cost of a measurement."""
        if len(self._costs) == 1 and not self._warm_cost:
            self._costs.clear()  # nor does a process's first measurement tell what another one costs
            self._warm_cost = True
        self._costs.append(seconds)
        if fixed:
            self.fixed_seconds += seconds
        else:
            self.optional_seconds += seconds

    def allows(self, total: int | None) -> bool:
        """Whether an optional measurement still fits a budget, in a run of `total` updates.

        The median of the last three costs must fit what may be spent by now, and the dearest of them the whole, so
        that neither one slow measurement ends the others nor a probe that has become dear is tried a second time.
        """
        if self.budget is None:
            return True
        whole, by_now = self._allowance(total)
        likely = median(self._costs) if self._warm_cost else 0.0
        dearest = max(self._costs, default=0.0)
        return self.optional_seconds + likely <= by_now and self.optional_seconds + dearest <= whole

    @property
    def knows_pace(self) -> bool:
        """Whether training time can be projected: not after a process's first update alone."""
        return bool(self._paces)

    def account(self, total: int | None) -> dict[str, float]:
        """In seconds: the dearest of the last three costs, what optional measurements have cost, and what they might
        have by now.
        """
        return {
            "cost": max(self._costs, default=0.0),
            "spent": self.optional_seconds,
            "allowed": self._allowance(total)[1],
        }

    def _allowance(self, total: int | None) -> tuple[float, float]:
        """Seconds for the whole run, and by now."""
        budget = self.budget or 0.0
        if total is None:
            return (budget * self.training_seconds,) * 2
        length = max(total - self.begun, self.updates, 1)
        whole = budget * (self.training_seconds + (length - self.updates) * self._pace())
        return whole, whole * (_EARLY + (1.0 - _EARLY) * self.updates / length)

    def _pace(self) -> float:
        """Seconds an update. The lower median: of two, one may have held an evaluation."""
        return median_low(self._paces) if self._paces else 0.0
