"""What the bench found, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from writing.markdown import table_of

from geomcallbacks.running.files import replace_file


@dataclass(frozen=True)
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
    rows: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)


def page(sections: Mapping[str, Section]) -> str:
    """Return all sections as Markdown."""
    return "\n\n".join(["# What measuring costs", *map(markdown, sections.values())]) + "\n"


def markdown(section: Section) -> str:
    """Return a section as text: heading, note, table, remarks, and how it was measured."""
    table = table_of([{column: shown(value) for column, value in row.items()} for row in section.rows])
    measured = "\n".join(f"- {key}: {value}" for key, value in section.measured.items())
    return "\n\n".join([f"## {section.title}", section.note, table, *section.remarks, measured])


def shown(value: Any) -> str:
    """Return a cell: numbers to three figures, nothing for what is missing."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.1e}"


def save(file: Path, found: Mapping[str, Section]) -> None:
    """Write sections by name as JSON to `file`, and as Markdown beside it. What the file holds of others stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    sections = {name: Section(**fields) for name, fields in before.items()} | dict(found)
    text = json.dumps({name: asdict(section) for name, section in sections.items()}, indent=1, ensure_ascii=False)
    replace_file(file, f"{text}\n".encode())
    replace_file(file.with_suffix(".md"), page(sections).encode())
