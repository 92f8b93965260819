"""Tables in Markdown, for every report of the recipes and of the bench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose columns line up in plain text too; a bar in a cell is escaped."""
    lines = [[str(cell).replace("|", r"\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def table_of(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the table of cells by column; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return table(columns, [[row.get(column, "") for column in columns] for row in rows])
