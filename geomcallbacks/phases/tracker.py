"""The phases of a run while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from geomcallbacks.phases.rule import Phase, find_phases


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
