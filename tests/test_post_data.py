"""The rows of the post-training recipes: what is cut from modules, and every public schema that is read."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from text.arithmetic import read_answer
from text.corpus import dataset_corpus, open_dataset
from text.data import (
    CODE_CHARACTERS,
    SUMMARY_CHARACTERS,
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
"""A module."""

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

    def method(self, x: int) -> int:
        \'\'\'  Multiplies by the factor.  \'\'\'
        # a comment stays
        return x * self.factor

    async def later(self):
        """Waits for the result."""
        return await self.result


def short(a):
    """Too short"""
    return a


def same_line(a): """Returns what it is given."""; return a


def only_docstring():
    """Has nothing else to show."""


def without(a):
    # no docstring at all
    return a


def not_a_docstring(a):
    f"""Formatted strings are none."""
    return a


def empty(a):
    """
    """
    return a


def second_line(a):
    """
    Begins on its second line.
    """
    return a
'''


def test_functions_are_cut_from_a_module() -> None:
    found = dict(functions(MODULE))
    assert found == {
        "Returns twice the number.": "def decorated(a):\n    b = a\n    return b + a",
        "Makes another function.": (
            'def outer(a):\n    def inner(b):\n        """Adds the two numbers."""\n        return a + b\n'
            "    return inner"
        ),
        "Adds the two numbers.": "def inner(b):\n    return a + b",
        "Multiplies by the factor.": (
            "def method(self, x: int) -> int:\n    # a comment stays\n    return x * self.factor"
        ),
        "Waits for the result.": "async def later(self):\n    return await self.result",
        "Begins on its second line.": "def second_line(a):\n    return a",
    }
    for code in found.values():
        ast.parse(code)


@pytest.mark.parametrize(
    "text", ["def broken(:\n", "", "\n", "x = 1\0", "a = (" * 500, "-" * 100_000 + "1", "not code at all", "\ufeff"]
)
def test_text_that_is_no_module_has_no_functions(text: str) -> None:
    assert list(functions(text)) == []


def test_escapes_of_old_modules_are_silent(recwarn: pytest.WarningsRecorder) -> None:
    text = 'def f(a):\n    """Returns a pattern."""\n    return "\\d" + a\n'
    assert [summary for summary, _ in functions(text)] == ["Returns a pattern."]
    assert not list(recwarn)


@pytest.mark.parametrize(("length", "kept"), [(9, False), (10, True), (100, True), (101, False)])
def test_the_length_of_a_summary_is_bounded(length: int, kept: bool) -> None:
    assert SUMMARY_CHARACTERS == 100
    text = f'def f(a):\n    """{"x" * length}"""\n    return a\n'
    assert len(list(functions(text))) == kept


@pytest.mark.parametrize("over", [0, 1])
def test_the_length_of_a_function_is_bounded(over: int) -> None:
    body = "    return '" + "x" * (CODE_CHARACTERS - len("def f(a):\n    return ''") + over) + "'"
    found = list(functions(f'def f(a):\n    """Returns some text."""\n{body}\n'))
    assert [len(code) for _, code in found] == ([] if over else [CODE_CHARACTERS])


@pytest.mark.parametrize("mark", ["\f\n", "x = '\u2028\x0b\x1c\x85'\n"], ids=["form feed", "separators in a string"])
def test_only_line_ends_of_python_count_as_lines(mark: str) -> None:
    """`str.splitlines` cuts at more characters than the parser counts, and every later function would be shifted."""
    text = mark + 'def f(a):\n    """Returns what it is given."""\n    return a\n'
    assert list(functions(text)) == [("Returns what it is given.", "def f(a):\n    return a")]


def test_windows_line_ends_are_lines() -> None:
    text = 'def f(a):\r\n    """Returns what it is given."""\r\n\r\n    return a\r\n'
    assert list(functions(text)) == [("Returns what it is given.", "def f(a):\n    return a")]


TEXTS = [
    'def f(a):\n    """Returns what it is given."""\n    return a\n',
    'def g(a):\n    """Returns nothing at all."""\n    pass\n',
    'def f(a):\n    """Returns what it is given."""\n    return a\n',  # again
]


def test_write_and_describe_are_opposite_instructions_in_hh_rlhf_format() -> None:
    assert write_rows(TEXTS) == [
        {"chosen": "\n\nHuman: Write a function. Returns what it is given.\n\nAssistant: def f(a):\n    return a"},
        {"chosen": "\n\nHuman: Write a function. Returns nothing at all.\n\nAssistant: def g(a):\n    pass"},
    ]
    assert describe_rows(TEXTS)[0] == {
        "chosen": "\n\nHuman: Describe this function.\ndef f(a):\n    return a\n\nAssistant: Returns what it is given."
    }
    assert to_pairs(write_rows(TEXTS))[1] == {
        "prompt": "\n\nHuman: Write a function. Returns nothing at all.\n\nAssistant:",
        "completion": " def g(a):\n    pass",
    }


def test_problem_rows_are_gsm8k_rows() -> None:
    rows = problem_rows(60, (2, 3), held_out=True, seed=9)
    assert all(set(row) == {"question", "answer"} for row in rows)
    for row, pair, problem in zip(rows, to_pairs(rows), to_problems(rows), strict=True):
        assert str(eval(row["question"])) == problem["answer"]
        assert row["answer"].endswith(f"#### {problem['answer']}")
        assert "Answer:" not in row["answer"]
        assert pair["prompt"] == problem["prompt"] == f"Question: {row['question']}\n"
        assert read_answer(pair["completion"]) == int(problem["answer"])
    assert rows == problem_rows(60, (2, 3), held_out=True, seed=9) != problem_rows(60, (2, 3), held_out=True, seed=10)


SEVERAL_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant:"
HH = [
    {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No idea."},
    {"chosen": f"{SEVERAL_TURNS} Good bye.", "rejected": f"{SEVERAL_TURNS} Go away."},
    # The last turns answer different questions: nothing is compared.
    {"chosen": "\n\nHuman: One?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Two?\n\nAssistant: No."},
]
ALPACA = [
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "dataset": "x", "generator": "y"},
    {"instruction": "Say hello.", "input": "", "output": "Hello", "dataset": "x", "generator": "y"},
]
GSM8K = [
    {"question": "3 boxes of 400?", "answer": "3 * 400 = <<3*400=1200>>1,200\n#### 1,200"},
    {"question": "10 - 12?", "answer": "10 - 12 = -2\n####  -2 \n"},
]
TEXT = [{"text": f"Document {i}. " + "word " * 40} for i in range(40)]


def test_pairs_of_hh_rlhf() -> None:
    assert to_pairs(HH) == [
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "completion": " Because."},
        {"prompt": SEVERAL_TURNS, "completion": " Good bye."},
        {"prompt": "\n\nHuman: One?\n\nAssistant:", "completion": " Yes."},
    ]


def test_preferences_of_hh_rlhf() -> None:
    assert to_preferences(HH) == [
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " Because.", "rejected": " No idea."},
        {"prompt": SEVERAL_TURNS, "chosen": " Good bye.", "rejected": " Go away."},
    ]


def test_pairs_of_alpaca_farm() -> None:
    assert to_pairs(ALPACA) == [
        {"prompt": "\n\nHuman: Translate.\n\nGuten Tag\n\nAssistant:", "completion": " Good day"},
        {"prompt": "\n\nHuman: Say hello.\n\nAssistant:", "completion": " Hello"},
    ]
    assert to_pairs([{"instruction": "Say hello.", "output": "Hello"}])[0]["completion"] == " Hello"
    without = [{"instruction": "Say hello.", "input": None, "output": "Hello"}]
    assert to_pairs(without)[0]["prompt"] == "\n\nHuman: Say hello.\n\nAssistant:"


def test_problems_and_pairs_of_gsm8k() -> None:
    assert to_problems(GSM8K) == [
        {"prompt": "Question: 3 boxes of 400?\n", "answer": "1200"},
        {"prompt": "Question: 10 - 12?\n", "answer": "-2"},
    ]
    assert to_pairs(GSM8K) == [
        {"prompt": "Question: 3 boxes of 400?\n", "completion": "3 * 400 = <<3*400=1200>>1,200\nAnswer: 1200\n"},
        {"prompt": "Question: 10 - 12?\n", "completion": "10 - 12 = -2\nAnswer: -2\n"},
    ]


def test_explicit_columns() -> None:
    rows = [{"prompt": "a", "completion": " b", "other": 1}]
    assert to_pairs(rows) == [{"prompt": "a", "completion": " b"}]
    preferences = [{"prompt": "a", "chosen": " b", "rejected": " c", "score": 2}]
    assert to_preferences(preferences) == [{"prompt": "a", "chosen": " b", "rejected": " c"}]
    # The DPO recipe measures the loss on the same rows: their chosen reply is the completion.
    assert to_pairs(preferences) == [{"prompt": "a", "completion": " b"}]


@pytest.mark.parametrize(
    ("convert", "rows", "message"),
    [
        (to_pairs, [{"sentence": "x", "label": 1}], r"instruction pairs.*\['label', 'sentence'\].*prompt, completion"),
        (to_pairs, [{"question": "x"}], r"question, answer"),
        (to_preferences, [{"chosen": "x"}], r"preference pairs.*\['chosen'\].*prompt, chosen, rejected"),
        (to_preferences, GSM8K, r"preference pairs"),
        (to_problems, [{"problem": "x", "solution": "y"}], r"problems.*\['problem', 'solution'\].*question, answer"),
        (to_problems, HH, r"problems"),
        (to_pairs, [], "there are no rows"),
        (to_preferences, [], "there are no rows"),
        (to_problems, [], "there are no rows"),
        (to_pairs, [{"chosen": "no turns at all"}], r"'no turns at all'.*Assistant"),
        (to_preferences, [{"chosen": HH[0]["chosen"], "rejected": "none"}], r"'none'.*Assistant"),
        (to_problems, [{"question": "x", "answer": "just 5"}], r"'just 5'.*####"),
        (to_pairs, [{"question": "x", "answer": "just 5"}], r"'just 5'.*####"),
        (to_problems, [{"question": "x", "answer": "5\n####\n"}], r"####"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_with_a_remedy(
    convert: Callable[[Sequence[Any]], Any], rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(rows)


def test_preferences_none_of_which_compare_one_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match=r"preference pairs.*prompt"):
        to_preferences(HH[2:])


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("rows", "convert"),
    [(HH, to_pairs), (HH, to_preferences), (ALPACA, to_pairs), (GSM8K, to_pairs), (GSM8K, to_problems)],
    ids=["hh-rlhf pairs", "hh-rlhf preferences", "AlpacaFarm", "GSM8K pairs", "GSM8K problems"],
)
def test_local_files_go_the_way_of_hub_sets(
    rows: list[dict[str, Any]], convert: Callable[[Sequence[Any]], Any], tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert convert(read_rows(file, None, None, "train", None)) == convert(rows)
    folder = tmp_path / "folder"
    folder.mkdir()
    pd.DataFrame(rows).to_parquet(folder / "part-0.parquet")
    assert convert(read_rows(str(folder), None, None, "train", None)) == convert(rows)


def test_rows_of_a_hub_set_are_asked_for_by_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(path: str, **options: Any) -> Any:
        asked.append((path, options))
        return datasets.Dataset.from_list(GSM8K)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert to_problems(read_rows("openai/gsm8k", "main", "v1", "test", 1, seed=1)) in [
        [problem] for problem in to_problems(GSM8K)
    ]
    assert asked == [
        ("openai/gsm8k", {"split": "test", "streaming": False, "name": "main", "revision": "v1"}),
    ]


def test_a_limit_draws_rows_from_all_of_them_in_order(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "x"} for i in range(200)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = [int(row["prompt"]) for row in read_rows(file, None, None, "train", 20)]
    assert len(set(found)) == 20
    assert found == sorted(found)
    assert max(found) > 100
    assert found == [int(row["prompt"]) for row in read_rows(file, None, None, "train", 20)]
    assert found != [int(row["prompt"]) for row in read_rows(file, None, None, "train", 20, seed=1)]
    assert len(read_rows(file, None, None, "train", 500)) == 200


def test_a_text_column_is_read_as_general_text(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "text.jsonl", TEXT)
    assert [row["text"] for row in open_dataset(file)] == [row["text"] for row in TEXT]
    assert [row["text"] for row in open_dataset(file, streaming=True)] == [row["text"] for row in TEXT]
    corpus = dataset_corpus(file)
    assert sorted(text for part in corpus.parts for text in (d.text for d in corpus.parts[part])) == sorted(
        row["text"] for row in TEXT
    )


def test_missing_files_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(str(tmp_path / "missing.jsonl"), None, None, "train", None)
    file = write_jsonl(tmp_path / "rows.jsonl", GSM8K)
    with pytest.raises(ValueError, match="test"):
        read_rows(file, None, None, "test", None)


def test_a_function_is_dedented() -> None:
    text = textwrap.indent(TEXTS[0], "    ")
    assert [code for _, code in functions("class A:\n" + text)] == ["def f(a):\n    return a"]
