"""The sums: hand-worked ones, which of them are held out, worked solutions, and how completions are read."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hostile import no_hang
from text.arithmetic import (
    ANSWERS,
    LARGEST,
    Problem,
    arithmetic_texts,
    distinct_problems,
    draw_problem,
    prompt_of,
    read_answer,
    worked_solution,
)
from text.data import problem_rows

TEXT = re.compile(r"Question: ([^\n]+)\n(.*?)Answer: (-?[0-9]+)\n", re.DOTALL)


def style_of(solution: str) -> str:
    starts = {"Answer": "direct", "Work: ": "equations", "First ": "prose", ">>> ": "code"}
    return next(style for start, style in starts.items() if solution.startswith(start))


class Script(random.Random):
    """Answers the draws of `worked_solution` as told: slips or not, where, by how much, and in which style."""

    def __init__(self, style: int, slip: int | None = None, error: int = 0) -> None:
        super().__init__(0)
        self._slip, self._style = slip, style
        self._errors = [error] if slip is not None else []

    def random(self) -> float:
        return 0.0 if self._slip is not None else 1.0

    def randrange(self, *_: Any) -> int:
        assert self._slip is not None
        return self._slip

    def choice(self, options: Any) -> Any:
        return self._errors.pop() if self._errors else options[self._style]


@pytest.mark.parametrize(
    ("terms", "signs", "question", "answer"),
    [
        ((47, 8, 23), ("+", "-"), "47+8-23", 32),
        ((2, 99), ("-",), "2-99", -97),
        ((5, 30, 40), ("-", "+"), "5-30+40", 15),  # below zero on the way
        ((10, 20, 30, 40), ("-", "-", "-"), "10-20-30-40", -80),
        ((9,), (), "9", 9),
    ],
)
def test_hand_worked_problems(terms: tuple[int, ...], signs: tuple[str, ...], question: str, answer: int) -> None:
    problem = Problem(terms, signs)
    assert (problem.question, problem.answer) == (question, answer)
    assert prompt_of(problem.question) == f"Question: {question}\n"


def test_terms_and_signs_must_fit() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Problem((1, 2, 3), ("+",)).question


@pytest.mark.parametrize(
    ("style", "solution"),
    [
        (0, "Answer: 15\n"),
        (1, "Work: 5-30=-25; -25+40=15\nAnswer: 15\n"),
        (2, "First 5-30 is -25, then -25+40 is 15.\nAnswer: 15\n"),
        (3, ">>> 5-30\n-25\n>>> -25+40\n15\nAnswer: 15\n"),
    ],
)
def test_a_worked_solution_of_each_style(style: int, solution: str) -> None:
    problem = Problem((5, 30, 40), ("-", "+"))
    assert worked_solution(problem, Script(style)) == solution
    assert read_answer(solution) == problem.answer == 15


def test_an_error_is_carried_on() -> None:
    problem = Problem((5, 30, 40), ("-", "+"))
    first = worked_solution(problem, Script(1, slip=0, error=10), wrong=0.5)
    assert first == "Work: 5-30=-15; -15+40=25\nAnswer: 25\n"
    last = worked_solution(problem, Script(1, slip=1, error=-1), wrong=0.5)
    assert last == "Work: 5-30=-25; -25+40=14\nAnswer: 14\n"


def test_solutions_are_right_unless_wrong_ones_are_asked_for() -> None:
    rng = random.Random(3)
    problems = distinct_problems(600, (2, 3, 4), held_out=False, seed=3)
    found = [(problem, worked_solution(problem, rng)) for problem in problems]
    assert {style_of(solution) for _, solution in found} == {"direct", "equations", "prose", "code"}
    assert all(read_answer(solution) == problem.answer for problem, solution in found)
    assert all(read_answer(worked_solution(problem, rng, wrong=1.0)) != problem.answer for problem in problems)


@pytest.mark.parametrize("wrong", [0.0, 0.15, 0.5])
def test_the_share_of_wrong_texts_is_what_was_asked_for(wrong: float) -> None:
    texts = arithmetic_texts(150_000, seed=5, wrong=wrong)
    parts = [TEXT.fullmatch(text) for text in texts]
    assert all(parts)
    right = [eval(part[1]) == int(part[3]) for part in parts if part]
    spread = 4 * (wrong * (1 - wrong) / len(right)) ** 0.5
    assert len(right) > 1500
    assert 1 - sum(right) / len(right) == pytest.approx(wrong, abs=spread)


def test_texts_stop_at_the_first_that_reaches_the_size() -> None:
    texts = arithmetic_texts(5000, seed=1)
    assert sum(map(len, texts[:-1])) < 5000 <= sum(map(len, texts))
    assert arithmetic_texts(0) == []


def test_held_out_problems_are_a_tenth_and_never_trained_on() -> None:
    test = {row["question"] for row in problem_rows(500, (2, 3), held_out=True, seed=2)}
    train = {row["question"] for row in problem_rows(4000, (2, 3), held_out=False, seed=1)}
    texts = {TEXT.fullmatch(text)[1] for text in arithmetic_texts(500_000, seed=0)}  # type: ignore[index]
    assert (len(test), len(train)) == (500, 4000)
    assert len(texts) > 5000
    assert train & texts  # both from the same problems
    assert not test & (train | texts)

    def problem(question: str) -> Problem:
        first, *rest = re.findall(r"[+-]?\d+", question)
        return Problem((int(first), *(int(part[1:]) for part in rest)), tuple(part[0] for part in rest))

    assert all(problem(question).held_out for question in test)
    assert not any(problem(question).held_out for question in train | texts)
    rng = random.Random(0)
    every = [Problem((rng.randint(2, LARGEST), rng.randint(2, LARGEST)), (rng.choice("+-"),)) for _ in range(5000)]
    assert sum(one.held_out for one in every) / 5000 == pytest.approx(26 / 256, abs=0.02)


def test_held_out_problems_are_pinned() -> None:
    """Another hash would give a later stage test problems that an older base was pretrained on."""
    questions = [((a, 7), ("+",)) for a in range(2, 42)]
    assert [terms[0] for terms, signs in questions if Problem(terms, signs).held_out] == [2, 14, 29, 32]


def test_drawn_problems_are_different_reproducible_and_alternate() -> None:
    found = distinct_problems(200, (2, 3), held_out=True, seed=4)
    assert len({problem.question for problem in found}) == 200
    assert [len(problem.terms) for problem in found] == [2, 3] * 100
    assert found == distinct_problems(200, (2, 3), held_out=True, seed=4)
    assert found != distinct_problems(200, (2, 3), held_out=True, seed=5)
    assert all(2 <= term <= LARGEST for problem in found for term in problem.terms)


def test_more_problems_than_there_are_is_an_error_and_not_an_endless_search() -> None:
    with no_hang(60), pytest.raises(ValueError, match=r"100000 problems: only 19\d\d different.*2 terms"):
        distinct_problems(100_000, (2,), held_out=True, seed=0)


@pytest.mark.parametrize("terms", [2, 3])
def test_answers_cover_exactly_what_problems_can_have(terms: int) -> None:
    reached = set(range(2, LARGEST + 1))
    for _ in range(terms - 1):
        reached = {total + term for total in reached for term in range(-LARGEST, LARGEST + 1) if abs(term) >= 2}
    assert set(ANSWERS[terms]) == reached
    rng = random.Random(0)
    assert all(draw_problem(rng, terms, held_out=False).answer in ANSWERS[terms] for _ in range(500))


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Answer: 12", 12),
        ("Answer: 12\n", 12),
        ("Work: 5-30=-25\nAnswer: -25\n", -25),
        ("Answer:5", 5),
        ("Answer:    5   ", 5),
        ("Answer: 007\n", 7),
        ("Answer: -0\n", 0),
        ("Answer: 12\nanything behind it\n", 12),
        ("Answer: 999999999999\n", 999_999_999_999),
        ("x" * 10_000 + "\nAnswer: 7", 7),
        ("So the Answer: 9 is clear\nAnswer: 7", 7),  # the first does not begin its line
    ],
)
def test_answers_that_are_read(completion: str, answer: int) -> None:
    assert read_answer(completion) == answer


MALFORMED = {
    "empty": "",
    "blank": " \n\t\n",
    "no answer": "Work: 5-30=-25\n",
    "nothing behind it": "Answer:",
    "nothing behind it but blanks": "Answer:   \n5",
    "not at the start of a line": "The Answer: 5",
    "another case": "answer: 5",
    "several answers": "Answer: 5\nAnswer: 6\n",
    "the same answer twice": "Answer: 5\nAnswer: 5\n",
    "a good and a bad answer": "Answer: 5\nAnswer: five\n",
    "two numbers": "Answer: 5 6",
    "thousands separator": "Answer: 1,000",
    "decimal point": "Answer: 12.0",
    "exponent": "Answer: 1e3",
    "underscore": "Answer: 1_000",
    "two signs": "Answer: --5",
    "plus": "Answer: +5",
    "sign apart": "Answer: - 5",
    "sign alone": "Answer: -",
    "typographic minus": "Answer: \u22125",
    "a unit": "Answer:5 apples",
    "a tab": "Answer:\t5",
    "Arabic-Indic digits": "Answer: \u0665",
    "full-width digits": "Answer: \uff15",
    "mixed digits": "Answer: 1\u0662",
    "superscript": "Answer: 5\u00b2",
    "circled digit": "Answer: \u2464",
    "vulgar fraction": "Answer: \u00bd",
    "no-break space": "Answer:\u00a05",
    "zero-width space": "Answer: 5\u200b",
    "10,000 characters": "Answer: " + "x" * 10_000,
    "10,000 digits": "Answer: " + "9" * 10_000,
    "thirteen digits": "Answer: 1000000000000",
    "10,000 answers": "Answer: 5\n" * 10_000,
    "10,000 blanks": "Answer:" + " " * 10_000 + "x",
    "NUL": "Answer: 5\0",
    "NUL in front": "\0Answer: 5",
    "Windows line ends": "Work: 2+3=5\r\nAnswer: 5\r\n",
    "a lone surrogate": "Answer: \ud800",
    "a replacement character": "Answer: \ufffd5",
}


@pytest.mark.parametrize("completion", MALFORMED.values(), ids=MALFORMED)
def test_malformed_completions_have_no_answer(completion: str) -> None:
    with no_hang(5):
        assert read_answer(completion) is None
