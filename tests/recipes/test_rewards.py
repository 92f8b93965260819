"""Rewards: right answers, wrong ones, and whatever else a policy may write."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from judging.rewards import VERIFIERS, math_verifier
from text.arithmetic import read_answer
from text.data import problem_rows, to_pairs, to_problems

JUDGES = {"integer": VERIFIERS["integer"](), "math_verify": math_verifier(seconds=1)}


@pytest.mark.parametrize("name", list(JUDGES))
def test_solutions_of_the_recipe_are_judged_as_trl_asks_for_it(name: str) -> None:
    rows = problem_rows(40, (2, 3), held_out=True, seed=6)
    solutions = [pair["completion"] for pair in to_pairs(rows)]
    answers = [problem["answer"] for problem in to_problems(rows)]
    besides = {"prompts": ["Question: 2+3\n"] * 40, "completion_ids": [[1]] * 40, "trainer_state": None}
    rewards = JUDGES[name].reward(completions=solutions, answer=answers, **besides)
    assert rewards == [1.0] * 40
    assert all(type(reward) is float for reward in rewards)
    assert JUDGES[name].reward(solutions, [str(int(answer) + 1) for answer in answers]) == [0.0] * 40
    assert [str(JUDGES[name].read(solution)) for solution in solutions] == answers
    with pytest.raises(ValueError, match="zip"):
        JUDGES[name].reward(["Answer: 5"], ["5", "6"])


def test_an_answer_is_an_integer_in_the_one_line_that_begins_so() -> None:
    """test_hostile holds the rule against another reading of it."""
    answers = {
        "Answer: 12\nanything behind it\n": 12, "Work: 5-30=-25\nAnswer: -25\n": -25, "Answer:    5   ": 5,
        "Answer: 007\n": 7, "Answer: -0\n": 0, "Answer: 999999999999\n": 999_999_999_999,
        "So the Answer: 9 is clear\nAnswer: 7": 7, "The Answer: 5": None, "Answer:   \n5": None, "Answer: 5 6": None,
        "Answer: 5\nAnswer: five\n": None, "Answer: 12.0": None, "Answer: 1000000000000": None,
    }  # fmt: skip
    assert {completion: read_answer(completion) for completion in answers} == answers


@pytest.mark.parametrize(
    ("completion", "wanted", "reward"),
    [
        (r"\boxed{12}", "12", 1.0),
        ("The answer is $1,234.00", "1234", 1.0),
        ("He pays 3 * 4 = 12 dollars.\n#### 12", "12", 1.0),
        ("Answer: 0.75", "3/4", 1.0),
        (r"$\frac{3}{4}$", "0.75", 1.0),
        ("Answer: 5\nAnswer: 6\n", "6", 1.0),  # the last one counts
        ("Answer: 5\nAnswer: 6\n", "5", 0.0),
        ("x" * 10_000 + " The answer is 5", "5", 1.0),
        ("The answer is 5" + " x" * 10_000, "5", 0.0),  # only the end is read
    ],
)
def test_math_verify_reads_completions_like_gsm8k(completion: str, wanted: str, reward: float) -> None:
    assert JUDGES["math_verify"].reward([completion], [wanted]) == [reward]


def test_equal_answers_are_equal_values() -> None:
    read = JUDGES["math_verify"].read
    assert read(r"\boxed{12}") == read("The answer is 12") == "12"
    assert len({read("Answer: 1,234"), read("Answer: 1234"), read("Answer: 7"), read("none")}) == 3


def test_an_expression_that_takes_for_ever_is_worth_nothing() -> None:
    """A policy that writes a tower of powers must not stop its own training."""
    began = time.monotonic()
    assert JUDGES["math_verify"].reward([r"\boxed{9^{9^{9}}}", "Answer: 5"], ["5", "5"]) == [0.0, 1.0]
    assert time.monotonic() - began < 10


def test_math_verify_refuses_other_threads_than_the_main_one() -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(JUDGES["integer"].reward, ["Answer: 5"], ["5"]).result() == [1.0]
        with pytest.raises(RuntimeError, match="judge in the main thread"):
            pool.submit(JUDGES["math_verify"].reward, ["Answer: 5"], ["5"]).result()


def test_a_missing_math_verify_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"pip install 'geomcallbacks\[math\]'"):
        VERIFIERS["math_verify"]()
