"""Rewards: right answers, wrong ones, and whatever else a policy may write."""

from __future__ import annotations

import functools
import sys
import threading
import time

import pytest
from hostile import no_hang
from judging.rewards import VERIFIERS, Verifier, math_verifier
from text.arithmetic import read_answer
from text.data import problem_rows, to_pairs, to_problems

EVERY = ["integer", "math_verify"]


@functools.cache
def verifier(name: str) -> Verifier:
    if name == "math_verify":
        pytest.importorskip("math_verify")
        return math_verifier(seconds=1)
    return VERIFIERS[name]()


@pytest.mark.parametrize("name", EVERY)
def test_rewards_are_given_as_trl_asks_for_them(name: str) -> None:
    rewards = verifier(name).reward(
        prompts=["Question: 2+3\n"] * 3,
        completions=["Answer: 5\n", "Answer: 6\n", "none"],
        answer=["5", "5", "5"],
        completion_ids=[[1], [2], [3]],
        trainer_state=None,
    )
    assert rewards == [1.0, 0.0, 0.0]
    assert all(type(reward) is float for reward in rewards)
    with pytest.raises(ValueError, match="zip"):
        verifier(name).reward(["Answer: 5"], ["5", "6"])


@pytest.mark.parametrize("name", EVERY)
def test_worked_solutions_of_the_recipe_are_right(name: str) -> None:
    rows = problem_rows(40, (2, 3), held_out=True, seed=6)
    solutions = [pair["completion"] for pair in to_pairs(rows)]
    answers = [problem["answer"] for problem in to_problems(rows)]
    assert verifier(name).reward(solutions, answers) == [1.0] * 40
    assert verifier(name).reward(solutions, [str(int(answer) + 1) for answer in answers]) == [0.0] * 40
    assert [str(verifier(name).read(solution)) for solution in solutions] == answers


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Answer: 12\nanything behind it\n", 12),
        ("Work: 5-30=-25\nAnswer: -25\n", -25),
        ("Answer:    5   ", 5),
        ("Answer: 007\n", 7),
        ("Answer: -0\n", 0),
        ("Answer: 999999999999\n", 999_999_999_999),
        ("So the Answer: 9 is clear\nAnswer: 7", 7),  # the first does not begin its line
    ],
)
def test_answers_that_are_read(completion: str, answer: int) -> None:
    assert read_answer(completion) == answer


#: None of them an answer to a sum.
MALFORMED = [
    "", "Work: 5-30=-25\n", "Answer:", "Answer:   \n5", "The Answer: 5", "answer: 5", "Answer: 5\nAnswer: 5\n",
    "Answer: 5\nAnswer: five\n", "Answer: 5 6", "Answer: 1,000", "Answer: 12.0", "Answer: 1e3", "Answer: 1_000",
    "Answer: --5", "Answer: +5", "Answer: - 5", "Answer: \u22125", "Answer:5 apples", "Answer:\t5", "Answer: \u0665",
    "Answer: \uff15", "Answer: 5\u00b2", "Answer: \u2464", "Answer:\u00a05", "Answer: 5\u200b", "Answer: 5\0",
    "\0Answer: 5", "Answer: " + "x" * 10_000, "Answer: " + "9" * 10_000, "Answer: 1000000000000",
    "Answer: 5\n" * 10_000, "Answer:" + " " * 10_000 + "x", "Work: 2+3=5\r\nAnswer: 5\r\n", "Answer: \ud800",
]  # fmt: skip


@pytest.mark.parametrize("completion", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_completions_are_worth_nothing_and_stop_no_verifier(completion: str) -> None:
    """Some of them math-verify reads: it has no format to insist on."""
    with no_hang(5):
        assert read_answer(completion) is verifier("integer").read(completion) is None
        assert verifier("integer").reward([completion, completion], ["5", "-5"]) == [0.0, 0.0]
    assert verifier("math_verify").reward([completion], ["77"]) == [0.0]
    assert isinstance(verifier("math_verify").read(completion), str | None)


@pytest.mark.parametrize(
    ("completion", "wanted", "reward"),
    [
        (r"\boxed{12}", "12", 1.0),
        (r"so it is \boxed{13}", "12", 0.0),
        ("The answer is $1,234.00", "1234", 1.0),
        ("He pays 3 * 4 = 12 dollars.\n#### 12", "12", 1.0),
        ("#### 5", "6", 0.0),
        ("Answer: 0.75", "3/4", 1.0),
        (r"$\frac{3}{4}$", "0.75", 1.0),
        ("Answer: -7\n", "-7", 1.0),
        ("Answer: 7\n", "-7", 0.0),
        ("Answer: 5\nAnswer: 6\n", "6", 1.0),  # the last one counts
        ("Answer: 5\nAnswer: 6\n", "5", 0.0),
        ("I do not know", "5", 0.0),
        ("x" * 10_000 + " The answer is 5", "5", 1.0),
        ("The answer is 5" + " x" * 10_000, "5", 0.0),  # only the end is read
    ],
)
def test_math_verify_reads_completions_like_gsm8k(completion: str, wanted: str, reward: float) -> None:
    assert verifier("math_verify").reward([completion], [wanted]) == [reward]


def test_equal_answers_are_equal_values() -> None:
    read = verifier("math_verify").read
    assert read(r"\boxed{12}") == read("The answer is 12") == "12"
    assert len({read("Answer: 1,234"), read("Answer: 1234"), read("Answer: 7"), read("none")}) == 3


@pytest.mark.parametrize("completion", [r"\boxed{9^{9^{9}}}", "9**9**9**9", r"\boxed{100000000!}"])
def test_an_expression_that_takes_for_ever_is_worth_nothing(completion: str) -> None:
    """A policy that writes a tower of powers must not stop its own training."""
    began = time.monotonic()
    assert verifier("math_verify").reward([completion, "Answer: 5"], ["5", "5"]) == [0.0, 1.0]
    assert time.monotonic() - began < 20


def test_math_verify_refuses_other_threads_than_the_main_one() -> None:
    raised: list[BaseException] = []

    def judge() -> None:
        assert verifier("integer").reward(["Answer: 5"], ["5"]) == [1.0]
        try:
            verifier("math_verify").reward(["Answer: 5"], ["5"])
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join(60)
    assert "judge in the main thread" in str(raised[0])


def test_a_missing_math_verify_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"pip install 'geomcallbacks\[math\]'"):
        VERIFIERS["math_verify"]()
