"""The sums: hand-worked ones, which of them are held out, and worked solutions."""

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
    read_answer,
    worked_solution,
)
from text.data import problem_rows

TEXT = re.compile(r"Question: ([^\n]+)\n(.*?)Answer: (-?[0-9]+)\n", re.DOTALL)
STYLES = {"Answer": "direct", "Work: ": "equations", "First ": "prose", ">>> ": "code"}


def style_of(solution: str) -> str:
    return next(style for start, style in STYLES.items() if solution.startswith(start))


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
    ("draws", "solution"),
    [
        (Script(0), "Answer: 15\n"),
        (Script(1), "Work: 5-30=-25; -25+40=15\nAnswer: 15\n"),
        (Script(2), "First 5-30 is -25, then -25+40 is 15.\nAnswer: 15\n"),
        (Script(3), ">>> 5-30\n-25\n>>> -25+40\n15\nAnswer: 15\n"),
        # An error is carried on.
        (Script(1, slip=0, error=10), "Work: 5-30=-15; -15+40=25\nAnswer: 25\n"),
        (Script(1, slip=1, error=-1), "Work: 5-30=-25; -25+40=14\nAnswer: 14\n"),
    ],
)
def test_a_worked_solution_of_each_style(draws: Script, solution: str) -> None:
    assert worked_solution(Problem((5, 30, 40), ("-", "+")), draws, wrong=0.5) == solution


def test_solutions_are_right_unless_wrong_ones_are_asked_for() -> None:
    rng = random.Random(3)
    for problem in distinct_problems(600, (2, 3, 4), held_out=False, seed=3):
        assert read_answer(worked_solution(problem, rng)) == problem.answer
        assert read_answer(worked_solution(problem, rng, wrong=1.0)) != problem.answer


def test_texts_are_of_every_style_and_wrong_as_often_as_asked_for() -> None:
    texts = arithmetic_texts(150_000, seed=5, wrong=0.2)
    assert sum(map(len, texts[:-1])) < 150_000 <= sum(map(len, texts))
    parts = [found for text in texts if (found := TEXT.fullmatch(text))]
    assert len(parts) == len(texts) > 1500
    right = sum(eval(part[1]) == int(part[3]) for part in parts)
    assert right / len(texts) == pytest.approx(0.8, abs=4 * (0.16 / len(texts)) ** 0.5)
    styles = [style_of(text.partition("\n")[2]) for text in texts]
    assert all(styles.count(style) > len(texts) / 5 for style in STYLES.values())
    assert arithmetic_texts(1000, seed=1) == arithmetic_texts(1000, seed=1) != arithmetic_texts(1000, seed=2)


def test_held_out_problems_are_a_tenth_and_never_trained_on() -> None:
    test = {row["question"] for row in problem_rows(500, (2, 3), held_out=True, seed=2)}
    train = {row["question"] for row in problem_rows(4000, (2, 3), held_out=False, seed=1)}
    texts = {text.split("\n")[0].removeprefix("Question: ") for text in arithmetic_texts(500_000, seed=0)}
    assert (len(test), len(train)) == (500, 4000)
    assert len(texts) > 5000
    assert train & texts  # both from the same problems
    assert not test & (train | texts)
    rng = random.Random(0)
    every = [Problem((rng.randint(2, LARGEST), rng.randint(2, LARGEST)), (rng.choice("+-"),)) for _ in range(5000)]
    assert sum(one.held_out for one in every) / 5000 == pytest.approx(26 / 256, abs=0.02)
    # Pinned: another hash would give a later stage test problems that an older base was pretrained on.
    assert [a for a in range(2, 42) if Problem((a, 7), ("+",)).held_out] == [2, 14, 29, 32]


def test_drawn_problems_are_different_reproducible_and_alternate() -> None:
    found = distinct_problems(200, (2, 3), held_out=True, seed=4)
    assert len({problem.question for problem in found}) == 200
    assert [len(problem.terms) for problem in found] == [2, 3] * 100
    assert found == distinct_problems(200, (2, 3), held_out=True, seed=4) != distinct_problems(200, (2, 3), True, 5)
    assert all(2 <= term <= LARGEST for problem in found for term in problem.terms)
    with no_hang(60), pytest.raises(ValueError, match=r"100000 problems: only 19\d\d different.*2 terms"):
        distinct_problems(100_000, (2,), held_out=True, seed=0)


@pytest.mark.parametrize("terms", [2, 3])
def test_answers_cover_exactly_what_problems_can_have(terms: int) -> None:
    reached = set(range(2, LARGEST + 1))
    for _ in range(terms - 1):
        reached = {total + term for total in reached for term in range(-LARGEST, LARGEST + 1) if abs(term) >= 2}
    assert set(ANSWERS[terms]) == reached
