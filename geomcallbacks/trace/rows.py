"""Rows of text: JSON Lines, and data sets on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each line that is not empty, and its value.

    Raises:
        ValueError: a line is no JSON.
    """
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except RecursionError:
                    raise ValueError(f"line {number} is no JSON that can be read: it is nested too deep") from None
                except ValueError as error:
                    raise ValueError(f"line {number} is no JSON: {error}") from error


def hub_rows(name: str, config: str | None = None, **options: Any) -> Any:
    """A data set on the hub, or in a folder of files, as `datasets.load_dataset` gives it.

    Raises:
        ValueError: the library is missing, or it cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("a hub data set needs the data sets' library: pip install datasets") from error
    try:
        return datasets.load_dataset(name, config, **options)
    except Exception as error:
        raise ValueError(
            f"no file here, and as a hub data set it cannot be read ({type(error).__name__}:"
            f" {str(error).splitlines()[0][:160]}): without a network, give a file"
        ) from error
