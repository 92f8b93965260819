"""Completions that hold anything: read as the rule says, or worth nothing. What policies write never stops a reward."""

from __future__ import annotations

import random
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hostile import no_hang, refused, survive
from judging.rewards import VERIFIERS
from text.arithmetic import Problem, prompt_of, read_answer, worked_solution
from text.data import to_problems

SIZES = pytest.mark.parametrize("count", [300, pytest.param(12_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault

PIECES = st.one_of(
    st.sampled_from(
        ["Answer:", "\n", " ", "-", "−", "+", "5", "0", "99999", "٣", "²", "５", "½", "\0", "\u200b", "\u00a0",
        "\r\n", "\v",
         "\x85", "\u2028", "answer:", "Answer", ":", "####", ",", ".", "_", "1e3", "\ud800", "\ufffd", "9" * 13,
         "9" * 5000, "\t"]
    ),
    st.text(max_size=3),
)  # fmt: skip
COMPLETIONS = st.lists(PIECES, max_size=9).map("".join)
DIGITS = "0123456789"


def plain_reading(completion: str) -> int | None:
    """The rule of `read_answer`, without regular expressions: one line that begins so, an ASCII integer behind it."""
    found = [line[len("Answer:") :].strip(" ") for line in completion.split("\n") if line.startswith("Answer:")]
    if len(found) != 1:
        return None
    digits = found[0].removeprefix("-")
    if not 1 <= len(digits) <= 12 or any(letter not in DIGITS for letter in digits):
        return None
    value = 0
    for letter in digits:
        value = 10 * value + DIGITS.index(letter)
    return -value if found[0].startswith("-") else value


@SIZES
def test_integer_answers(tally: Callable[..., None], count: int) -> None:
    verifier = VERIFIERS["integer"]()

    def check(drawn: tuple[str, int]) -> None:
        completion, wanted = drawn
        answer = plain_reading(completion)
        assert read_answer(completion) == verifier.read(completion) == answer
        assert verifier.reward([completion], [str(wanted)]) == [float(answer == wanted)]

    survive(tally, "hostile answer", st.tuples(COMPLETIONS, st.integers(-9, 9)), check, count)


@SIZES
def test_worked_solutions_of_any_sum(tally: Callable[..., None], count: int) -> None:
    def check(drawn: tuple[list[int], int]) -> None:
        terms, seed = drawn
        signs = tuple(random.Random(seed).choice("+-") for _ in terms[1:])
        problem = Problem(tuple(terms), signs)
        total = terms[0]
        for sign, term in zip(signs, terms[1:], strict=True):
            total += term if sign == "+" else -term
        solution = worked_solution(problem, random.Random(seed))
        assert problem.answer == plain_reading(prompt_of(problem.question) + solution) == total

    terms = st.lists(st.integers(0, 10**9), min_size=1, max_size=6)
    survive(tally, "hostile answer", st.tuples(terms, st.integers(0, 2**32)), check, count)


@SIZES
def test_final_answers_of_gsm8k(tally: Callable[..., None], count: int) -> None:
    def check(text: str) -> None:
        try:
            (row,) = to_problems([{"question": "q", "answer": text}])
        except ValueError as error:
            refused(error, "####")
        else:
            assert row["answer"]
            assert "," not in row["answer"] or "####" not in text

    survive(tally, "hostile answer", COMPLETIONS, check, count)


LATEX = [
    r"\boxed{", "}", "$", r"\frac{", "{", "^", "9", "9^{9^{9}}", "9**9**9", "!", r"\sqrt{", "٣", "²", "\0", "−",
    "-", "5",
    "9" * 5000, "(" * 200, r"\left(", "Answer: ", " ", "\n", "\ud800", "=", "x", r"\int", r"\sum_{", "1e999999",
    "%", "nan", "oo",
]  # fmt: skip


@pytest.mark.parametrize("count", [15, pytest.param(700, marks=pytest.mark.slow)])
def test_mathematical_answers(tally: Callable[..., None], count: int) -> None:
    """A reward is 0 or 1 whatever is written, and the next plain answer is judged rightly."""
    pytest.importorskip("math_verify")
    verifier = VERIFIERS["math_verify"]()
    for seed in range(count):
        draw = random.Random(seed)
        completion = "".join(draw.choice(LATEX) for _ in range(draw.randrange(1, 9)))
        with no_hang(60):
            (reward,) = verifier.reward([completion], ["5"])
        assert reward in (0.0, 1.0), completion
        assert reward == 0.0 or "5" in completion or "9" in completion, completion
        assert seed % 20 or verifier.reward(["Answer: 5", "Answer: 6"], ["5", "5"]) == [1.0, 0.0]
    tally("hostile answer", count, count)
