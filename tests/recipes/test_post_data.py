"""The rows of the post-training recipes: what is cut from modules, and every public schema that is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from text.arithmetic import read_answer
from text.data import (
    describe_rows,
    functions,
    problem_rows,
    read_rows,
    to_pairs,
    to_preferences,
    to_problems,
    write_rows,
)

MODULE = '''\
@cache
@wraps(other,
       updated=())
def decorated(a):
    """Returns twice the number.

    More about it.
    """
    b = a

    return b + a

def outer(a):
    """Makes another function."""
    def inner(b):
        """Adds the two numbers."""
        return a + b
    return inner

class Thing:
    """Not a function."""

    async def later(self):
        \'\'\'
          Waits for the result.  \'\'\'
        # a comment stays
        return await self.result

def same_line(a): """Returns what it is given."""; return a

def only_docstring():
    """Has nothing else to show."""

def not_a_docstring(a):
    f"""Formatted strings are none."""
    return a
'''


def test_functions_are_cut_from_a_module() -> None:
    assert dict(functions(MODULE)) == {
        "Returns twice the number.": "def decorated(a):\n    b = a\n    return b + a",
        "Makes another function.": (
            'def outer(a):\n    def inner(b):\n        """Adds the two numbers."""\n        return a + b\n'
            "    return inner"
        ),
        "Adds the two numbers.": "def inner(b):\n    return a + b",
        "Waits for the result.": "async def later(self):\n    # a comment stays\n    return await self.result",
    }


@pytest.mark.parametrize(
    "text",
    [
        "def broken(:\n", "", "x = 1\0", "(" * 500, "-" * 100_000 + "1", "\ufeff", "\ud800", "1" * 9000,
        "def f():\n  '''" + "a" * 100_000,
    ],
    ids=range(9),
)  # fmt: skip
def test_text_that_is_no_module_has_no_functions(text: str) -> None:
    assert list(functions(text)) == []


def module(summary: str, body: str = "return a") -> str:
    return f'def f(a):\n    """{summary}"""\n    {body}\n'


GIVEN = "Returns what it is given."
CUT = [(GIVEN, "def f(a):\n    return a")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (module("x" * 9), False),
        (module("x" * 10), True),
        (module("x" * 100), True),
        (module("x" * 101), False),
        (module(GIVEN, f"return '{'x' * 217}'"), True),  # 240 characters without the docstring
        (module(GIVEN, f"return '{'x' * 218}'"), False),
    ],
)
def test_the_length_of_summary_and_function_is_bounded(text: str, kept: bool) -> None:
    assert len(list(functions(text))) == kept


@pytest.mark.parametrize(
    "text",
    [
        "\f\n" + module(GIVEN),  # `str.splitlines` cuts at more characters than the parser counts
        "x = '\u2028\x0b\x1c\x85'\n" + module(GIVEN),
        module(GIVEN).replace("\n", "\r\n"),
    ],
    ids=["form feed", "separators in a string", "Windows line ends"],
)
def test_only_line_ends_of_python_count_as_lines(text: str) -> None:
    assert list(functions(text)) == CUT


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


def test_problem_rows_are_gsm8k_rows() -> None:
    rows = problem_rows(60, (2, 3), held_out=True, seed=9)
    for row, pair, problem in zip(rows, to_pairs(rows), to_problems(rows), strict=True):
        assert str(eval(row["question"])) == problem["answer"]
        assert "Answer:" not in row["answer"]
        assert pair["prompt"] == problem["prompt"] == f"Question: {row['question']}\n"
        assert read_answer(pair["completion"]) == int(problem["answer"])
    assert rows == problem_rows(60, (2, 3), held_out=True, seed=9) != problem_rows(60, (2, 3), held_out=True, seed=10)


SEVERAL_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant:"
WHY = "\n\nHuman: Why?\n\nAssistant:"
HH = [
    {"chosen": f"{WHY} Because.", "rejected": f"{WHY} No idea."},
    {"chosen": f"{SEVERAL_TURNS} Good bye.", "rejected": f"{SEVERAL_TURNS} Go away."},
    # The last turns answer different questions: nothing is compared.
    {"chosen": f"{WHY} Yes.", "rejected": "\n\nHuman: Two?\n\nAssistant: No."},
]
HH_PAIRS = [
    {"prompt": WHY, "completion": " Because."},
    {"prompt": SEVERAL_TURNS, "completion": " Good bye."},
    {"prompt": WHY, "completion": " Yes."},
]
HH_PREFERENCES = [
    {"prompt": WHY, "chosen": " Because.", "rejected": " No idea."},
    {"prompt": SEVERAL_TURNS, "chosen": " Good bye.", "rejected": " Go away."},
]
ALPACA = [
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "dataset": "x", "generator": "y"},
    {"instruction": "Say hello.", "input": None, "output": "Hello", "dataset": "x", "generator": "y"},
]
ALPACA_PAIRS = [
    {"prompt": "\n\nHuman: Translate.\n\nGuten Tag\n\nAssistant:", "completion": " Good day"},
    {"prompt": "\n\nHuman: Say hello.\n\nAssistant:", "completion": " Hello"},
]
GSM8K = [
    {"question": "3 boxes of 400?", "answer": "3 * 400 = <<3*400=1200>>1,200\n#### 1,200"},
    {"question": "10 - 12?", "answer": "10 - 12 = -2\n####  -2 \n"},
]
GSM8K_PROBLEMS = [
    {"prompt": "Question: 3 boxes of 400?\n", "answer": "1200"},
    {"prompt": "Question: 10 - 12?\n", "answer": "-2"},
]
GSM8K_PAIRS = [
    {"prompt": "Question: 3 boxes of 400?\n", "completion": "3 * 400 = <<3*400=1200>>1,200\nAnswer: 1200\n"},
    {"prompt": "Question: 10 - 12?\n", "completion": "10 - 12 = -2\nAnswer: -2\n"},
]
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
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert convert(read_rows(str(tmp_path / "rows.jsonl"))) == found
    (tmp_path / "folder").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "folder" / "part-0.parquet")
    assert convert(read_rows(str(tmp_path / "folder"))) == found


@pytest.mark.parametrize(
    ("convert", "rows", "message"),
    [
        (to_pairs, [{"sentence": "x", "label": 1}], r"instruction pairs.*\['label', 'sentence'\].*prompt, completion"),
        (to_preferences, [{"chosen": "x"}], r"preference pairs.*\['chosen'\].*prompt, chosen, rejected"),
        (to_preferences, HH[2:], r"preference pairs.*prompt"),
        (to_problems, [{"problem": "x", "solution": "y"}], r"problems.*\['problem', 'solution'\].*question, answer"),
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
