"""Rows of text: JSON Lines, Parquet, and data sets on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geomcallbacks.trace.checkpoints.loading import refusal


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the number of each line that is not empty, and its object.

    Raises:
        ValueError: a line is no JSON, or no object.
    """
    with path.expanduser().open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is a {type(row).__name__}: give an object a line")
            yield number, row


def parquet_rows(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the number of each row and the row, with this column alone where there is such a column.

    Raises:
        ValueError: it is no Parquet file, or damaged.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        columns = [column] if column in file.schema_arrow.names else None
        batches = file.iter_batches(batch_size=256, columns=columns)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"no Parquet file, or damaged: {error}") from error


def hub_rows(name: str, config: str | None = None, **options: Any) -> Any:
    """Open a data set on the hub, or in a folder of files, as `datasets.load_dataset` gives it.

    Raises:
        ValueError: it cannot be read.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config, **options)
    except Exception as error:
        text = f"no file here, and as a hub data set it cannot be read ({refusal(error)})"
        raise ValueError(f"{text}: without a network, give a file") from error
