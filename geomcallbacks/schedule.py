"""At which updates geometry is measured."""

from __future__ import annotations

from dataclasses import dataclass

#: Without `every`, the run is measured about so many times after its log-spaced beginning.
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
            take, such as 0.01. Half of it may be spent at once, so that the beginning is measured densely; the other
            half comes evenly over the run, so that its later part is thinned out and not left out. What is skipped
            stands in the record file. A process's first measurement, which warms up, says nothing of the cost: a second
            is taken to learn it. None: no bound.

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
            raise ValueError(f"every={self.every}: give a positive number of updates, or None: a fiftieth of the run")
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
        return self.per_decade > 0 and _log_index(step, self.per_decade) != _log_index(step - 1, self.per_decade)

    def steps(self, total: int) -> list[int]:
        """All updates at which a run of `total` updates is measured."""
        return [step for step in range(total + 1) if self.is_due(step, total)]


def _log_index(step: int, per_decade: int) -> int:
    """How many of the points round(10^(k/per_decade)), k = 0, 1, …, are at or below `step`."""
    k = 0
    while round(10 ** (k / per_decade)) <= step:
        k += 1
    return k
