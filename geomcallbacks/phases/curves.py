"""The phases of every curve of a run, `<probe>/<layer>`, while it is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from geomcallbacks.phases.rule import PhaseTracker


class Curves:
    """A tracker for each curve. `from_scratch` is that of `PhaseTracker`."""

    def __init__(self, from_scratch: bool | None = None) -> None:
        self._from_scratch = from_scratch
        self._trackers: dict[str, PhaseTracker] = {}

    def __len__(self) -> int:
        return len(self._trackers)

    def add(self, curve: str, step: int, value: float | None) -> tuple[str | None, str | None]:
        """Add a measurement; return the phase that the curve is in, and in words what that has changed."""
        tracker = self._trackers.setdefault(curve, PhaseTracker(self._from_scratch))
        change = tracker.add(step, value)
        return tracker.name, None if change is None else str(change)

    def load(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take what the run has recorded before, as `read_records` gives it."""
        points: dict[str, list[tuple[int, float | None]]] = {}
        for row in rows:
            points.setdefault(f"{row['probe']}/{row['layer']}", []).append((row["step"], row["rankme"]))
        for curve, of_curve in points.items():
            self._trackers[curve] = PhaseTracker(self._from_scratch)
            self._trackers[curve].load(of_curve)
