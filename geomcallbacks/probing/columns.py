"""Texts as data sets have them: a column read row by row, what in it is no text, and what is no column."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BATCH = 1000  # rows that are looked through at once
_MAPPED = 1 << 26  # bytes of a mapped file that are read before it is opened anew …
_OPENINGS = 64  # … but not more often than this


class _InMemory(Sequence[Any]):
    """One column of a table in memory, by place and a value at a time.

    Args:
        values: of pandas, Polars, NumPy or Arrow.
    """

    def __init__(self, values: Any) -> None:
        self._length = len(values)
        self._values = getattr(values, "iloc", values)  # pandas' own [] goes by label

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]


def column_of(dataset: Any, name: str) -> Any:
    """Return the texts of one column: a sequence of which only what is asked for is read, or an iterator of a stream.

    Raises:
        ValueError: there is no such column, or the data set has splits.
        TypeError: it has no columns.
    """
    parts = dataset if isinstance(dataset, Mapping) else {}
    splits = [str(key) for key, part in parts.items() if hasattr(part, "column_names")]
    if splits:
        shown = f"dataset[{splits[0]!r}]"
        raise ValueError(f"dataset is one of splits, {', '.join(splits)}: give one of them, {shown} say")
    names = parts or getattr(dataset, "column_names", getattr(dataset, "columns", None))
    if names is not None and name not in list(names):
        raise ValueError(f"text_column={name!r} is not in the data set: it has {', '.join(map(str, names))}")
    if not hasattr(dataset, "__len__"):
        return _streamed(dataset, name)
    if hasattr(dataset, "with_format") and dataset.format["type"] != "custom":
        dataset = dataset.with_format(None)  # set_format(columns=…) hides the text from all who do not train on it
    try:
        values = dataset[name]
    except (LookupError, TypeError, ValueError) as error:
        kind = type(dataset).__name__
        raise TypeError(f"dataset is a {kind} without columns: give its texts to ProbeSet.from_texts") from error
    return values if isinstance(values, Sequence) else _InMemory(values)


def text_of(value: Any, where: str) -> str | None:
    """Return the text of one value, or None where there is none: None, NaN and their relatives.

    Args:
        value: what stands in the column.
        where: the beginning of a message, "text 3 is" say.

    Raises:
        TypeError: it is something else.
    """
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, str):
        return value
    kind = type(value).__name__
    if value is None or kind in ("NAType", "NaTType") or (isinstance(value, numbers.Real) and value != value):
        return None
    raise TypeError(f"{where} a {kind}, not a string: {_remedy(value)}")


def places_of(texts: Sequence[Any], wanted: set[str]) -> list[int]:
    """Return where in a column one of these texts stands. The column is read once, and a part of it held at a time."""
    found = []
    for start, part in _parts(texts):
        for at in range(0, len(part), _BATCH):
            batch = part[at : at + _BATCH]
            found += [start + at + i for i, text in enumerate(batch) if isinstance(text, str) and text in wanted]
    return found


def _parts(texts: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield parts of a column with the place of their first text.

    What was read of a mapped Arrow file counts as memory of this process for as long as the file stays mapped, so it
    is mapped anew for each part.
    """
    source: Any = getattr(texts, "source", None)
    if not getattr(source, "cache_files", None):
        yield 0, texts
        return
    rows = max(_BATCH, len(texts) // _OPENINGS, len(texts) * _MAPPED // max(1, int(source.data.nbytes)))
    name = texts.column_name  # type: ignore[attr-defined]
    for start in range(0, len(texts), rows):
        part = _mapped_anew(source).select(range(start, min(start + rows, len(texts))))
        yield start, part[name]


def _mapped_anew(dataset: Any) -> Any:
    """Return a data set over the same files, which are opened again: copying a block of a mapped table does that."""
    try:
        table = copy.copy(dataset._data)
        if hasattr(table, "blocks"):
            blocks = [[copy.copy(block) for block in row] for row in table.blocks]
            table.__setstate__(table.__getstate__() | {"blocks": blocks})
        fresh = copy.copy(dataset)
        fresh._data = table
    except AttributeError:  # these are internal to `datasets`
        return dataset
    return fresh


def _streamed(dataset: Any, name: str) -> Iterator[Any]:
    for number, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise TypeError(f"row {number} of the stream is a {kind} without columns: give it to ProbeSet.from_texts")
        if name not in row:
            raise ValueError(f"text_column={name!r} is not in row {number} of the stream: it has {', '.join(row)}")
        yield row[name]


def _remedy(value: Any) -> str:
    parts = value if isinstance(value, list | tuple) else [value]
    if parts and all(isinstance(part, Mapping) for part in parts):
        return "render messages first, with tokenizer.apply_chat_template(messages, tokenize=False)"
    if isinstance(value, bytes | bytearray | memoryview):
        return "decode the column first, with value.decode('utf-8') say"
    if parts is value and parts and all(isinstance(part, numbers.Integral) for part in parts):
        return "token ids go into ProbeSet.from_token_ids"
    return "clean the texts before probing"
