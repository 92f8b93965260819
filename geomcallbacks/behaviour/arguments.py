"""Checks of arguments that several measures and rows share."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise ``TypeError`` unless the argument called `name` is of this class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}: give a {kind.__name__}")


def check_positive(**numbers: int) -> None:
    """Raise ``ValueError`` unless these, by name, are positive whole numbers."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number!r}: give a positive whole number")


def check_equal_lengths(**columns: Sized) -> None:
    """Raise ``ValueError`` unless these, by name, hold the same number of items, and at least one."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        found = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"{found}: give one of each for every row, and at least one row")


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raise unless this is a non-empty list of strings: ``TypeError`` for other types, ``ValueError`` for none."""
    if isinstance(texts, str):
        raise TypeError(f"{name} is a single string: give a list of strings")
    if not len(texts):
        raise ValueError(f"{name} is empty: give at least one")
    for index, text in enumerate(texts):
        check_type(f"{name}[{index}]", text, str)
