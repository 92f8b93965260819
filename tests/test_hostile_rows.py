"""Rows of post-training data sets and modules that hold anything: texts come out, or an error names the column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hostile import no_hang, refused, survive
from text.data import functions, to_pairs, to_preferences, to_problems

SIZES = pytest.mark.parametrize("count", [300, pytest.param(2_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault

CELLS: Any = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=6), st.lists(st.text(max_size=2), max_size=2),
    st.sampled_from(["#### 5", "1+1\n#### 1,000", "\n\nHuman: a\n\nAssistant: b", "####", {"a": 1}]),
)  # fmt: skip
COLUMNS = ["prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "question", "answer"]


@SIZES
def test_rows_of_post_training(tally: Callable[..., None], count: int) -> None:
    def check(rows: list[dict[str, Any]]) -> None:
        for reader in (to_pairs, to_preferences, to_problems):
            try:
                found = reader(rows)
            except ValueError as error:
                refused(error)
            else:
                assert 0 < len(found) <= len(rows)
                assert all(isinstance(value, str) for row in found for value in row.values())

    columns = st.sets(st.sampled_from(COLUMNS), min_size=1, max_size=4)
    rows = columns.flatmap(lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), max_size=3))
    survive(tally, "hostile text", rows, check, count)


SOURCES = [
    "(" * 500,
    "x = " + "-" * 50_000 + "1",
    "\0",
    "def f(:",
    "\ud800",
    "def f():\n  '''" + "a" * 100_000,
    "1" * 9000,
]


def test_modules_that_do_not_parse(tally: Callable[..., None]) -> None:
    for source in SOURCES:
        with no_hang():
            assert list(functions(source)) == []
        tally("hostile text")
