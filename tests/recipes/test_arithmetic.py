"""The sums: hand-worked ones, which of them are held out, and worked solutions."""

from __future__ import annotations

import random
import re

import pytest
from text.arithmetic import ANSWERS, LARGEST, Problem, arithmetic_texts, distinct_problems, read_answer, worked_solution
from text.data import problem_rows, to_pairs, to_problems

TEXT = re.compile(r"Question: ([^\n]+)\n(.*?)Answer: (-?[0-9]+)\n", re.DOTALL)


def test_a_worked_solution_of_each_style() -> None:
    problem = Problem((5, 30, 40), ("-", "+"))
    assert {worked_solution(problem, random.Random(seed)) for seed in range(60)} == {
        "Answer: 15\n",
        "Work: 5-30=-25; -25+40=15\nAnswer: 15\n",
        "First 5-30 is -25, then -25+40 is 15.\nAnswer: 15\n",
        ">>> 5-30\n-25\n>>> -25+40\n15\nAnswer: 15\n",
    }
    wrong = {worked_solution(problem, random.Random(seed), wrong=1.0) for seed in range(600)}
    # One of four errors in one of two steps, in each style; "Answer: 25" alone does not say in which step.
    assert len(wrong) == 3 * 8 + 4
    assert "Work: 5-30=-15; -15+40=25\nAnswer: 25\n" in wrong  # the error is carried on
    assert "Work: 5-30=-25; -25+40=14\nAnswer: 14\n" in wrong


def test_solutions_are_right_unless_wrong_ones_are_asked_for() -> None:
    rng = random.Random(3)
    for problem in distinct_problems(600, (2, 3, 4), held_out=False, seed=3):
        assert read_answer(worked_solution(problem, rng)) == problem.answer
        assert read_answer(worked_solution(problem, rng, wrong=1.0)) != problem.answer


def test_texts_are_whole_and_wrong_as_often_as_asked_for() -> None:
    texts = arithmetic_texts(150_000, seed=5, wrong=0.2)
    assert sum(map(len, texts[:-1])) < 150_000 <= sum(map(len, texts))
    parts = [found for text in texts if (found := TEXT.fullmatch(text))]
    assert len(parts) == len(texts) > 1500
    right = sum(eval(part[1]) == int(part[3]) for part in parts)
    assert right / len(texts) == pytest.approx(0.8, abs=4 * (0.16 / len(texts)) ** 0.5)
    assert arithmetic_texts(1000, seed=1) == arithmetic_texts(1000, seed=1) != arithmetic_texts(1000, seed=2)
    # Pinned: other draws would give another corpus under the same settings.
    assert arithmetic_texts(100) == [
        "Question: 99-55-7\nFirst 99-55 is 44, then 44-7 is 37.\nAnswer: 37\n",
        "Question: 47+76-29\nWork: 47+76=124; 124-29=95\nAnswer: 95\n",
    ]


def test_a_tenth_of_the_problems_is_held_out() -> None:
    every = [Problem((a, b), (sign,)) for a in range(2, LARGEST + 1) for b in range(2, LARGEST + 1) for sign in "+-"]
    assert sum(one.held_out for one in every) / len(every) == pytest.approx(26 / 256, abs=0.01)
    # Pinned: another hash would give a later stage test problems that an older base was pretrained on.
    assert [a for a in range(2, 42) if Problem((a, 7), ("+",)).held_out] == [2, 14, 29, 32]


def test_drawn_problems_are_different_reproducible_and_alternate() -> None:
    found = distinct_problems(200, (2, 3), held_out=True, seed=4)
    assert len({problem.question for problem in found}) == 200
    assert [len(problem.terms) for problem in found] == [2, 3] * 100
    assert found == distinct_problems(200, (2, 3), held_out=True, seed=4) != distinct_problems(200, (2, 3), True, 5)
    assert all(2 <= term <= LARGEST for problem in found for term in problem.terms)
    with pytest.raises(ValueError, match=r"100000 problems: only 19\d\d different.*2 terms"):
        distinct_problems(100_000, (2,), held_out=True, seed=0)


def test_problem_rows_are_gsm8k_rows() -> None:
    rows = problem_rows(60, (2, 3), held_out=True, seed=9)
    for row, pair, problem in zip(rows, to_pairs(rows), to_problems(rows), strict=True):
        assert str(eval(row["question"])) == problem["answer"]
        assert "Answer:" not in row["answer"]
        assert pair["prompt"] == problem["prompt"] == f"Question: {row['question']}\n"
        assert read_answer(pair["completion"]) == int(problem["answer"])
    assert rows == problem_rows(60, (2, 3), held_out=True, seed=9) != problem_rows(60, (2, 3), held_out=True, seed=10)


def test_answers_cover_exactly_what_problems_can_have() -> None:
    reached = set(range(2, LARGEST + 1))
    for terms in (2, 3):
        reached = {total + term for total in reached for term in range(-LARGEST, LARGEST + 1) if abs(term) >= 2}
        assert set(ANSWERS[terms]) == reached
