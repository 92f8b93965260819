"""What measuring has cost, and whether an optional measurement still fits its share of the training time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median_low


class Budget:
    """Skip an optional measurement while all of them would cost more than a share of the training time.

    Training time is projected: what has passed, and the updates left at the median pace of late. Where the number of
    updates is not known, it is what has passed. Half of the share may be spent at once, so that the beginning is
    measured densely; the other half comes evenly over the run, so that its end is thinned out and not left out.

    Time is passed in, in seconds, never read here.

    Args:
        share: `Schedule.budget`.
        step: the update from which training time is counted.
        now: the time at which training goes on.
        state: what `state_dict` of an earlier process of the same run gave.
    """

    def __init__(self, share: float, step: int, now: float, state: Mapping[str, float] | None = None) -> None:
        known = state or {}
        self.share = share
        self.begun = int(known.get("begun", step))
        self.updates = int(known.get("updates", 0))
        self.training = float(known.get("training_seconds", 0.0))
        self.optional = float(known.get("optional_seconds", 0.0))
        self._booked = (step, now)  # up to where training is booked
        self._paces: deque[float] = deque([self.training / self.updates] if self.updates else [], maxlen=9)
        self._costs: deque[float] = deque([known["cost"]] if "cost" in known else [], maxlen=2)
        self._cold: float | None = None  # the process's first measurement, which warms up
        self._unbooked = False  # and whether it is optional, as long as no warm one says what of it was measuring
        self.warm = False  # whether this process's first update is booked: it compiles and allocates, and is no pace

    @property
    def knows_pace(self) -> bool:
        """Whether training time can be projected: not after a process's first update alone."""
        return bool(self._paces)

    def trained(self, step: int, now: float) -> None:
        """Book the time since the last booking as training, up to update `step`."""
        updates, seconds = step - self._booked[0], now - self._booked[1]
        self._booked = (step, now)
        if updates <= 0:
            return
        self.training += seconds
        self.updates += updates
        if self.warm:
            self._paces.append(seconds / updates)
        self.warm = True

    def measured(self, seconds: float, *, optional: bool) -> None:
        """Book a measurement: its time is no training."""
        self._booked = (self._booked[0], self._booked[1] + seconds)
        if self._cold is None:
            self._cold, self._unbooked = seconds, optional
            return
        self._costs.append(seconds)
        if self._unbooked:
            self.optional += min(self._cold, seconds)
            self._unbooked = False
        if optional:
            self.optional += seconds

    def allows(self, total: int | None) -> bool:
        """Whether one more optional measurement fits, in a run of `total` updates.

        As long as no warm one is known, the next is taken to learn its cost, once the pace is known.
        """
        account = self.account(total)
        fits = account["spent"] + account["cost"] <= account["allowed"]
        return fits or (not self._costs and self.knows_pace)

    def account(self, total: int | None) -> dict[str, float]:
        """Return, in seconds, what a measurement costs, what optional ones have, and what they may have by now."""
        cost = min(self._costs, default=self._cold or 0.0)  # the cheaper of two: one may have been disturbed
        return {"cost": cost, "spent": self.optional, "allowed": self._allowance(total)}

    def told(self, step: int, total: int | None) -> str:
        """Say why a measurement is not allowed."""
        cost, spent, allowed = (f"{self.account(total)[key]:.3g} s" for key in ("cost", "spent", "allowed"))
        return (
            f"budget={self.share} does not allow the measurement at step {step}: one takes {cost}, and of {allowed}"
            f" allowed by now {spent} are spent. What else is skipped stands in the record file"
        )

    def _allowance(self, total: int | None) -> float:
        if total is None:
            return self.share * self.training
        length = max(total - self.begun, self.updates, 1)
        pace = median_low(self._paces) if self._paces else 0.0  # of two, one may have held an evaluation
        projected = self.training + (length - self.updates) * pace
        return self.share * projected * (1 + self.updates / length) / 2

    def state_dict(self) -> dict[str, float]:
        """Return plain numbers: a run that is stopped and resumed does not get its allowance anew."""
        state = {
            "begun": self.begun,
            "updates": self.updates,
            "training_seconds": self.training,
            "optional_seconds": self.optional,
        }
        return state | ({"cost": min(self._costs)} if self._costs else {})
