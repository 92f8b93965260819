"""What the bench found, as Markdown and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Section:
    """One part of the bench.

    Attributes:
        title: its heading.
        note: what was run, in a sentence or two.
        rows: what was found, each row by column.
        remarks: what the rows show, a sentence each.
        measured: when, on what, with what and by which command.
    """

    title: str
    note: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)


def markdown(section: Section) -> str:
    """The section as text: heading, note, table, remarks, and how it was measured."""
    columns = list(dict.fromkeys(column for row in section.rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(shown(row.get(column)) for column in columns) + " |" for row in section.rows]
    measured = "\n".join(f"- {key}: {value}" for key, value in section.measured.items())
    return "\n\n".join([f"## {section.title}", section.note, "\n".join(lines), *section.remarks, measured])


def aligned(table: str) -> str:
    """The same for a terminal: the cells of a table padded to its widest."""
    lines, found = [], []
    for line in [*table.splitlines(), ""]:
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        widths = [max(map(len, column)) for column in zip(*found, strict=True)]
        for cells in found:
            padded = [
                cell.ljust(width, "-" if cell == "---" else " ") for cell, width in zip(cells, widths, strict=True)
            ]
            lines.append("  ".join(padded).rstrip())
        lines.append(line)
        found = []
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell: numbers to three figures, nothing for what is missing."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.1e}"


def save(file: Path, found: dict[str, Section]) -> None:
    """Write sections by name as JSON to `file`, and as Markdown beside it. Sections that the file holds and that were
    not measured now stay as they were.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    sections = {name: Section(**fields) for name, fields in before.items()} | found
    text = json.dumps({name: asdict(section) for name, section in sections.items()}, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    parts = ["# What measuring costs", *map(markdown, sections.values())]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
