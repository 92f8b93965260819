"""Tables in Markdown, for every report of the recipes and of the bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table whose columns line up in plain text too.

    Args:
        rows: cells by column. A column that a row lacks, or None, leaves the cell empty; a bar in a cell is escaped.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [["" if row.get(column) is None else str(row[column]) for column in columns] for row in rows]
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (columns, *cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)
