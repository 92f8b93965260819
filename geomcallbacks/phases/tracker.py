"""The phases of a run while it goes on."""

from __future__ import annotations

from collections.abc import Sequence

from geomcallbacks.phases.rule import Phase, find_phases


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

    def add(self, step: int, rankme: float | None) -> str | None:
        """Take in a measurement; whatever was known of this update or later ones is dropped.

        Returns:
            In words, that the run has passed into another phase, or that it turns out not to have; else None.
        """
        before = self.phases
        self.load([*(point for point in self._points if point[0] < step), (step, rankme)])
        grown = len(self.phases) - len(before)
        if (not before and not self.phases) or [p.name for p in before] == [p.name for p in self.phases]:
            return None
        if grown >= 0:
            # One more phase, and the run is still in the same: only what lies behind it was read anew.
            same = grown == 1 and before and before[-1].name == self.name
            return None if same else self.phases[-1].describe()
        gone = next(phase for phase in reversed(before) if phase.name != self.name)
        held = f"still {self.name}" if self.phases else "in no phase"
        return f"{held}: {gone.name} since update {gone.start:,g} did not last"

    def load(self, points: Sequence[tuple[int, float | None]]) -> None:
        """Take in what a resumed run has measured: (step, RankMe)."""
        self._points = list(points)
        steps, values = [step for step, _ in points], [value for _, value in points]
        self.phases = find_phases(steps, values, from_scratch=self.from_scratch)
