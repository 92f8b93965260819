"""The tables of an analysis, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def render(numbers: Mapping[str, Any]) -> str:
    """Returns the report of what `analysis_numbers.analyse` gives."""
    probe = numbers["probe"]
    window = "–".join(map(str, probe["alpha_window"]))
    parts = [
        "# Analysis of a pretraining run",
        f"Probe {probe['fingerprint']}: n = {probe['n']:,}, d = {probe['d']}"
        f"; α over ranks {window}. Updates in brackets.",
        "## Phases",
        phases_line(numbers["phases"]),
        f"Tracing the checkpoints again gave RankMe to {numbers['traced_off']:.1e} of the logged value at worst.",
        "## By layer",
        curves_table("layer", numbers["layers"]),
        "## Under other probes, at the last layer",
        curves_table("probe", numbers["probes"]),
        "## Behaviour beside the geometry",
        behaviour_table(numbers["behaviour"]),
    ]
    if numbers["bands"]:
        parts += ["## Loss by token frequency", bands_table(numbers["bands"])]
    if numbers["intervention"]:
        parts += ["## Spectral intervention", intervention_tables(numbers["intervention"])]
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def phases_line(phases: Sequence[Mapping[str, Any]]) -> str:
    """Returns phases in words: the name of each and its first and last update."""
    return "; ".join(f"{phase['name']} {phase['start']:,.0f}–{phase['end']:,.0f}" for phase in phases) or "none"


def curves_table(kind: str, curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a row for each curve: RankMe where it starts, where its phases end and where it ends; and the phases."""
    rows = []
    for name, curve in curves.items():
        marks = [f"{_number(mark['rankme'])} ({mark['step']:,})" for mark in curve["turning_points"]]
        rows.append([name, " → ".join(marks), phases_line(curve["phases"])])
    return table([kind, "RankMe", "phases"], rows)


def behaviour_table(behaviour: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a row for each number: its course, and its rank correlation with RankMe and with α by phase."""
    spans = list(dict.fromkeys(span for row in behaviour.values() for span in row["rank_correlation"]))
    heads = ["", "start", "highest", "end", "half of the gain at", *(f"ρ with RankMe, α: {span}" for span in spans)]
    rows = []
    for name, row in behaviour.items():
        found = [row["rank_correlation"].get(span) for span in spans]
        rows.append(
            [
                f"`{name}`",
                _number(row["start"]),
                f"{_number(row['highest']['value'])} ({row['highest']['step']:,})",
                _number(row["end"]),
                f"{row['half_of_gain_at']:,}",
                *("" if f is None else f"{_signed(f['rankme'])}, {_signed(f['alpha_req'])}" for f in found),
            ]
        )
    return table(heads, rows)


def bands_table(bands: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a row for each band of token frequency, the most frequent first."""
    heads = ["band", "loss at the start", "at the end", "half of the drop at"]
    rows = [[n, f"{b['start']:.2f}", f"{b['end']:.2f}", f"{b['half_of_drop_at']:,.0f}"] for n, b in bands.items()]
    return table(heads, rows)


def intervention_tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table for each cloze set: a row for each intervention, a column for each checkpoint."""
    ends = ("_low", "_high")
    keys = [key for key in records[0] if "/" in key and not key.endswith(ends)]
    parts = []
    for measure in dict.fromkeys(key.partition("/")[0] for key in keys):
        heads = [measure.removeprefix("intervention_"), *(f"update {record['step']:,}" for record in records)]
        rows = []
        for key in (key for key in keys if key.startswith(f"{measure}/")):
            cells = [[record[f"{key}{end}"] for end in ("", *ends)] for record in records]
            rows.append(
                [key.partition("/")[2].replace("_", " "), *(f"{a:.3f} ({lo:.3f}–{hi:.3f})" for a, lo, hi in cells)]
            )
        parts.append(table(heads, rows))
    return "\n\n".join(parts)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
