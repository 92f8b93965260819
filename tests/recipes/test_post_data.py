"""The rows of the post-training recipes: what is cut from modules, and every public schema that is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from text.data import describe_rows, functions, read_rows, to_pairs, to_preferences, to_problems, write_rows

MODULE = '''\
@cache
def decorated(a):
    """Returns twice the number.

    More about it.
    """
    b = a

    return b + a

class Thing:
    """Not a function."""

    async def later(self):
        \'\'\'
          Waits for the result.  \'\'\'
        def inner(b):
            """Adds the two numbers."""
            return a + b
        # a comment stays
        return await inner

def same_line(a): """Returns what it is given."""; return a
def only_docstring():
    """Has nothing else to show."""
def not_a_docstring(a):
    f"""Formatted strings are none."""
    return a
'''


def test_functions_are_cut_from_a_module() -> None:
    inner = 'def inner(b):\n        """Adds the two numbers."""\n        return a + b\n'
    assert dict(functions(MODULE)) == {
        "Returns twice the number.": "def decorated(a):\n    b = a\n    return b + a",
        "Waits for the result.": f"async def later(self):\n    {inner}    # a comment stays\n    return await inner",
        "Adds the two numbers.": "def inner(b):\n    return a + b",
    }


def test_text_that_is_no_module_has_no_functions() -> None:
    unclosed = "def f():\n  '''" + "a" * 100_000
    for text in ("def broken(:\n", "", "x\0", "(" * 500, "-" * 100_000 + "1", "\ufeff", "\ud800", "1" * 9000, unclosed):
        assert list(functions(text)) == [], text[:20]


def module(summary: str, body: str = "return a") -> str:
    return f'def f(a):\n    """{summary}"""\n    {body}\n'


GIVEN = "Returns what it is given."


def test_the_length_of_summary_and_function_is_bounded() -> None:
    assert [n for n in range(200) if list(functions(module("x" * n)))] == list(range(10, 101))
    bodies = [module(GIVEN, f"return '{'x' * n}'") for n in range(230)]
    assert [len(list(functions(body))) for body in bodies] == [1] * 218 + [0] * 12
    assert max(len(code) for body in bodies for _, code in functions(body)) == 240


def test_only_line_ends_of_python_count_as_lines() -> None:
    # `str.splitlines` cuts at more characters than the parser counts.
    text = module(GIVEN)
    for changed in ("\f\n" + text, "x = '\u2028\x0b\x1c\x85'\n" + text, text.replace("\n", "\r\n")):
        assert list(functions(changed)) == [(GIVEN, "def f(a):\n    return a")]


def test_escapes_of_old_modules_are_silent(recwarn: pytest.WarningsRecorder) -> None:
    assert len(list(functions(module("Returns a pattern.", 'return "\\d" + a')))) == 1
    assert not list(recwarn)


def test_write_and_describe_are_opposite_instructions_in_hh_rlhf_format() -> None:
    texts = [module(GIVEN), module("Returns nothing at all.", "pass"), module(GIVEN)]
    assert write_rows(texts) == [
        {"chosen": "\n\nHuman: Write a function. Returns what it is given.\n\nAssistant: def f(a):\n    return a"},
        {"chosen": "\n\nHuman: Write a function. Returns nothing at all.\n\nAssistant: def f(a):\n    pass"},
    ]
    assert describe_rows(texts)[0] == {
        "chosen": "\n\nHuman: Describe this function.\ndef f(a):\n    return a\n\nAssistant: Returns what it is given."
    }


SEVERAL_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant:"
HH = [
    {"chosen": f"{SEVERAL_TURNS} Good bye.", "rejected": f"{SEVERAL_TURNS} Go away."},
    # The last turns answer different questions: nothing is compared.
    {"chosen": f"{SEVERAL_TURNS} Yes.", "rejected": "\n\nHuman: Two?\n\nAssistant: No."},
]
HH_PAIRS = [{"prompt": SEVERAL_TURNS, "completion": reply} for reply in (" Good bye.", " Yes.")]
HH_PREFERENCES = [{"prompt": SEVERAL_TURNS, "chosen": " Good bye.", "rejected": " Go away."}]
ALPACA = [
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "dataset": "x", "generator": "y"},
    {"instruction": "Say hello.", "input": None, "output": "Hello", "dataset": "x", "generator": "y"},
]
ALPACA_PAIRS = [
    {"prompt": "\n\nHuman: Translate.\n\nGuten Tag\n\nAssistant:", "completion": " Good day"},
    {"prompt": "\n\nHuman: Say hello.\n\nAssistant:", "completion": " Hello"},
]
GSM8K = [{"question": "0 - 3 * 400?", "answer": "3 * 400 = <<3*400=1200>>1,200\n####  -1,200 \n"}]
GSM8K_PROBLEMS = [{"prompt": "Question: 0 - 3 * 400?\n", "answer": "-1200"}]
GSM8K_PAIRS = [{"prompt": "Question: 0 - 3 * 400?\n", "completion": "3 * 400 = <<3*400=1200>>1,200\nAnswer: -1200\n"}]
PREFERENCE = {"prompt": "a", "chosen": " b", "rejected": " c"}


@pytest.mark.parametrize(
    ("rows", "convert", "found"),
    [
        (HH, to_pairs, HH_PAIRS),
        (HH, to_preferences, HH_PREFERENCES),
        (ALPACA, to_pairs, ALPACA_PAIRS),
        (GSM8K, to_pairs, GSM8K_PAIRS),
        (GSM8K, to_problems, GSM8K_PROBLEMS),
        ([{"prompt": "a", "completion": " b", "other": 1}], to_pairs, [{"prompt": "a", "completion": " b"}]),
        ([{**PREFERENCE, "score": 2}], to_preferences, [PREFERENCE]),
        # The DPO recipe measures the loss on the same rows: their chosen reply is the completion.
        ([{**PREFERENCE, "score": 2}], to_pairs, [{"prompt": "a", "completion": " b"}]),
    ],
)
def test_public_columns_are_read_from_files_as_from_hub_sets(
    rows: list[dict[str, Any]], convert: Callable[[Sequence[Any]], Any], found: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert convert(rows) == found
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    assert convert(read_rows(str(tmp_path / "rows.parquet"))) == found


@pytest.mark.parametrize(
    ("convert", "rows", "message"),
    [
        (to_pairs, [{"sentence": "x", "label": 1}], r"instruction pairs.*\['label', 'sentence'\].*prompt, completion"),
        (to_preferences, [{"chosen": "x"}], r"preference pairs.*\['chosen'\].*prompt, chosen, rejected"),
        (to_preferences, HH[1:], r"preference pairs.*prompt"),
        (to_problems, [], "there are no rows"),
        (to_pairs, [{"chosen": "no turns at all"}], r"'no turns at all'.*Assistant"),
        (to_pairs, [{"prompt": "x", "completion": None}], r"column 'completion' holds None"),
        (to_problems, [{"question": "x", "answer": "just 5"}], r"'just 5'.*####"),
        (to_problems, [{"question": "x", "answer": "5\n####\n"}], r"####"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_with_a_remedy(
    convert: Callable[[Sequence[Any]], Any], rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(rows)


def test_a_limit_draws_rows_from_all_of_them_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"prompt": str(i)} for i in range(200)])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: rows)
    found, again = ([int(row["prompt"]) for row in read_rows("owner/name", 20)] for _ in range(2))
    assert found == again == sorted(set(found))
    assert len(found) == 20
    assert max(found) > 100
    assert len(read_rows("owner/name", 500)) == 200
