"""A run as its files tell it: curves, numbers of behaviour, phases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from geomcallbacks.phases import Phase, find_phases
from geomcallbacks.record import read_spectra
from geomcallbacks.report.loss import Loss
from geomcallbacks.statistics import finite

Record = Mapping[str, Any]

#: Ends of keys that belong to another number: its 95 % interval, and how much it was measured on.
_BESIDE = re.compile(r"/(low|high|n)$|_(low|high)$")


@dataclass(frozen=True)
class Point:
    """A number at an update, with its 95 % interval where there is one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Run:
    """A run, as its files tell it.

    Attributes:
        name: under which it is shown.
        file: record file of the geometry.
        records: of the geometry, every probe and layer.
        behaviour: one mapping for each update at which behaviour was measured; keys such as "cloze_near/accuracy".
        loss: (updates, training loss) in order; may be empty.
        header: last header of the record file: settings, versions, probes.
    """

    name: str
    file: Path
    records: list[dict[str, Any]]
    behaviour: list[dict[str, Any]]
    loss: Loss
    header: dict[str, Any]

    @cached_property
    def probes(self) -> list[str]:
        """Labels of the probes, in the order of the file."""
        return list(dict.fromkeys(str(record["probe"]) for record in self.records))

    @cached_property
    def layers(self) -> list[str]:
        """Labels of the layers, from the embedding upwards where the labels say so."""
        labels = list(dict.fromkeys(str(record["layer"]) for record in self.records))
        numbered = all(re.fullmatch(r"layer\d+", label) for label in labels)
        return sorted(labels, key=lambda label: int(label[5:])) if numbered else labels

    def curve(self, probe: str | None = None, layer: str | None = None) -> list[dict[str, Any]]:
        """Return the records of one probe and layer in the order of updates; by default first probe, last layer."""
        wanted = (self.probes[0] if probe is None else probe, self.layers[-1] if layer is None else layer)
        found = {r["step"]: r for r in self.records if (str(r["probe"]), str(r["layer"])) == wanted}
        return [found[step] for step in sorted(found)]

    def metric(self, name: str, probe: str | None = None, layer: str | None = None) -> list[Point]:
        """Return a metric of the geometry along the run."""
        rows = [row for row in self.curve(probe, layer) if finite(row.get(name)) is not None]
        spans = [(row.get("intervals") or {}).get(name) or (None, None) for row in rows]
        return [Point(row["step"], float(row[name]), *span) for row, span in zip(rows, spans, strict=True)]

    @cached_property
    def keys(self) -> list[str]:
        """Keys of the numbers of behaviour, without those that only state an interval or a count."""
        keys = dict.fromkeys(key for row in self.behaviour for key, value in row.items() if finite(value) is not None)
        return [key for key in keys if "/" in key and not _BESIDE.search(key)]

    @property
    def accuracies(self) -> list[str]:
        """Keys of the accuracies, in the order of the file."""
        return [key for key in self.keys if key.endswith("/accuracy")]

    def number(self, key: str) -> list[Point]:
        """Return a number of behaviour along the run. Its interval: `key_low`, or `name/low` of the first `name/…`."""
        group = key.partition("/")[0] + "/"
        own = next((other for other in self.keys if other.startswith(group)), None) == key
        low, high = ([f"{key}_{side}"] + [f"{group}{side}"] * own for side in ("low", "high"))
        rows = [row for row in self.behaviour if finite(row.get(key)) is not None]
        return [Point(row["step"], float(row[key]), _first(row, low), _first(row, high)) for row in rows]

    @cached_property
    def phases(self) -> list[Phase]:
        """Phases of the default curve, as the run itself says whether it starts from random weights."""
        return self.phases_of()

    def phases_of(self, probe: str | None = None, layer: str | None = None) -> list[Phase]:
        """Return the phases of one probe and layer."""
        rows = self.curve(probe, layer)
        rankme, alpha = ([finite(row.get(name)) for row in rows] for name in ("rankme", "alpha_req"))
        from_scratch = (self.header.get("settings") or {}).get("from_scratch")
        return find_phases([row["step"] for row in rows], rankme, alpha, from_scratch=from_scratch)

    @cached_property
    def marks(self) -> list[tuple[str, Record]]:
        """Records of the default curve at its start, at each boundary of its phases and at its end, with their names.

        Of a single measurement, the start alone.
        """
        rows = {row["step"]: row for row in self.curve() if finite(row.get("rankme")) is not None}
        start, *later = rows
        ends = {int(phase.end): f"end of {phase.name}" for phase in self.phases[:-1]}
        ends |= dict.fromkeys(later[-1:], "end")
        return [("start", rows[start]), *((name, rows[step]) for step, name in ends.items())]

    @cached_property
    def steps(self) -> set[int]:
        """The numbers of updates of anything there is to draw."""
        return {row["step"] for row in (*self.records, *self.behaviour)} | {update for update, _ in self.loss}

    def spectrum(self, record: Record) -> list[float] | None:
        """Return the eigenvalues that were kept with a record, descending; None where they were not, or have gone."""
        try:
            return [float(value) for value in read_spectra(self.file, record)]
        except (OSError, ValueError):
            return None


def describe_phases(run: Run) -> str:
    """Return one line: RankMe at the start, at each boundary of the phases and at the end, and α beside it."""
    values = [f"{row['rankme']:.1f}" for _, row in run.marks]
    for place, phase in enumerate(run.phases, start=1):
        values[place] += f" ({phase.name}, to update {phase.end:,.0f})"
    if not run.phases:
        values[-1] += " (no phase stands out)"
    found = [finite(row.get("alpha_req")) for _, row in run.marks]
    alphas = ["–" if alpha is None else f"{alpha:.2f}" for alpha in found]
    return f"RankMe {' → '.join(values)}; α {' → '.join(alphas)}"


def _first(row: Record, keys: Sequence[str]) -> float | None:
    return next((found for found in (finite(row.get(key)) for key in keys) if found is not None), None)
