"""Completions, rows and YAML values that hold anything: read as the rule says, worth nothing, or a clear error."""

from __future__ import annotations

import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hostile import refused, survive
from judging.rewards import VERIFIERS, math_verifier
from text.data import to_pairs, to_preferences, to_problems
from training.arguments import RecipeParser
from training.settings import StageSettings

pytestmark = pytest.mark.fault
SIZES = pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.slow)])
DIGITS = "0123456789"
PIECES = [
    "Answer:", "\n", " ", "-", "−", "+", "5", "0", "99999", "٣", "²", "½", "\0", "\u00a0", "\r\n", "\x85", "\u2028",
    "answer:", ":", "####", ",", ".", "_", "1e3", "\ud800", "9" * 13, "9" * 5000, "\t", "Answer: 5\n" * 9000,
    " " * 10_000,
]  # fmt: skip


def plain_reading(completion: str) -> int | None:
    """The rule of `read_answer`, without regular expressions: one line that begins so, an ASCII integer behind it."""
    found = [line[len("Answer:") :].strip(" ") for line in completion.split("\n") if line.startswith("Answer:")]
    if len(found) != 1:
        return None
    digits = found[0].removeprefix("-")
    if not 1 <= len(digits) <= 12 or any(letter not in DIGITS for letter in digits):
        return None
    value = sum(DIGITS.index(letter) * 10**place for place, letter in enumerate(reversed(digits)))
    return -value if found[0].startswith("-") else value


@SIZES
def test_integer_answers(count: int) -> None:
    verifier = VERIFIERS["integer"]()

    def check(pieces: list[str]) -> None:
        completion = "".join(pieces)
        answer = plain_reading(completion)
        assert verifier.read(completion) == answer
        assert verifier.reward([completion], ["5"]) == [float(answer == 5)]

    pieces = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=9)
    survive(pieces, check, count)


LATEX = [
    r"\boxed{", "}", "$", r"\frac{", "{", "^", "9", "9^{9^{9}}", "9**9**9", "!", r"\sqrt{", "٣", "\0", "-", "5", "=",
    "9" * 5000, "(" * 200, r"\left(", "Answer: ", "\n", "\ud800", "x", r"\int", r"\sum_{", "1e999999", "oo",
]  # fmt: skip


@pytest.mark.parametrize("count", [15, pytest.param(700, marks=pytest.mark.slow)])
def test_mathematical_answers(count: int) -> None:
    """A reward is 0 or 1 whatever is written, and the next plain answer is judged rightly."""
    verifier = math_verifier(seconds=1)
    for seed in range(count):
        draw = random.Random(seed)
        completion = "".join(draw.choices(LATEX, k=draw.randrange(1, 9)))
        (reward,) = verifier.reward([completion], ["5"])
        assert reward == 0.0 or (reward == 1.0 and ("5" in completion or "9" in completion)), completion
        assert isinstance(verifier.read(completion), str | None)
    assert verifier.reward(["Answer: 5", "Answer: 6"], ["5", "5"]) == [1.0, 0.0]


CELLS: Any = st.none() | st.integers() | st.floats() | st.text(max_size=6) | st.lists(st.text(max_size=2), max_size=2)
CELLS |= st.sampled_from(["#### 5", "1+1\n#### 1,000", "\n\nHuman: a\n\nAssistant: b", "####", {"a": 1}])
COLUMNS = ["prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "question", "answer"]


@SIZES
def test_rows_of_post_training(count: int) -> None:
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
    survive(rows, check, count)


VALUES = st.integers().map(str) | st.floats().map(str) | st.text(st.characters(codec="utf-8"), max_size=6)
VALUES |= st.sampled_from(["true", "no", "~", "1_0", "[1]", "{a: 1}", "&a x", "*a", "!!int 3", "!x", "- a", "'", "|"])
DEFAULTS = vars(StageSettings())


@SIZES
def test_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    """A value of the right type, or one line of error."""
    parser = RecipeParser(StageSettings, prog="recipe")

    def check(drawn: dict[str, str]) -> None:
        (tmp_path / "a.yaml").write_text("\n".join(map(": ".join, drawn.items())), encoding="utf-8")
        with contextlib.suppress(SystemExit):
            found = vars(copy.deepcopy(parser).parse(["--config", str(tmp_path / "a.yaml")]))
            for name, default in DEFAULTS.items():
                assert type(found[name]) in ((str, int, type(None)) if default is None else (type(default),))
                assert name in drawn or found[name] == default
            return
        assert capsys.readouterr().err.startswith("recipe: error: ")

    names = st.sampled_from([*DEFAULTS, "threds"])
    survive(st.dictionaries(names, VALUES, max_size=3), check, count)
