"""The tables of an analysis, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from writing.markdown import table
from writing.page import fill


def render(numbers: Mapping[str, Any]) -> str:
    """Return page.md.jinja for what `numbers.analyse` gives."""
    parts = (phases_line, curves_table, behaviour_table, bands_table, intervention_tables)
    functions = {function.__name__: function for function in parts}
    return fill(Path(__file__).with_name("page.md.jinja"), **functions, **numbers)


def phases_line(phases: Sequence[Mapping[str, Any]]) -> str:
    """Return phases in words: the name of each and its first and last update."""
    return "; ".join(f"{phase['name']} {phase['start']:,.0f}–{phase['end']:,.0f}" for phase in phases) or "none"


def curves_table(kind: str, curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row for each curve: RankMe where it starts, where its phases end and where it ends; and the phases."""
    rows = []
    for name, curve in curves.items():
        marks = [_at(mark) for mark in curve["turning_points"]]
        rows.append([name, " → ".join(marks), phases_line(curve["phases"])])
    return table([kind, "RankMe", "phases"], rows)


def behaviour_table(behaviour: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row for each number: its course, and its rank correlation with RankMe and with α by phase."""
    spans = list(dict.fromkeys(span for row in behaviour.values() for span in row["rank_correlation"]))
    rows = []
    for name, row in behaviour.items():
        highest = {"step": row["highest"]["step"], "rankme": row["highest"]["value"]}
        course = [_number(row["start"]), _at(highest), _number(row["end"]), f"{row['half_of_gain_at']:,}"]
        found = [row["rank_correlation"].get(span) for span in spans]
        both = ["" if f is None else f"{_signed(f['rankme'])}, {_signed(f['alpha_req'])}" for f in found]
        rows.append([f"`{name}`", *course, *both])
    columns = ["", "start", "highest", "end", "half of the gain at"]
    return table([*columns, *(f"ρ with RankMe, α: {span}" for span in spans)], rows)


def _at(point: Mapping[str, Any]) -> str:
    return f"{_number(point['rankme'])} ({point['step']:,})"


def bands_table(bands: Mapping[str, Mapping[str, float]]) -> str:
    """Return a row for each band of token frequency, the most frequent first."""
    header = ["band", "loss at the start", "at the end", "half of the drop at"]
    rows = [[n, f"{b['start']:.2f}", f"{b['end']:.2f}", f"{b['half_of_drop_at']:,.0f}"] for n, b in bands.items()]
    return table(header, rows)


def intervention_tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each cloze set: a row for each intervention, a column for each checkpoint."""
    tables: dict[str, list[list[str]]] = {}
    for key in (key for key in records[0] if "/" in key and not key.endswith(("_low", "_high"))):
        measure, _, change = key.partition("/")
        cells = [f"{r[key]:.3f} ({r[f'{key}_low']:.3f}–{r[f'{key}_high']:.3f})" for r in records]
        tables.setdefault(measure, []).append([change.replace("_", " "), *cells])
    updates = [f"update {record['step']:,}" for record in records]
    return "\n\n".join(table([name.removeprefix("intervention_"), *updates], rows) for name, rows in tables.items())


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
