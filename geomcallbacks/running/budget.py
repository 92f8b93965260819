"""What measuring has cost and may cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median, median_low

#: The share of a budget that may be spent at once; the rest comes evenly over the run.
_EARLY = 0.5


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
