"""Rewards: right answers, wrong ones, and whatever else a policy may write."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

import pytest
from hostile import no_hang
from judging import math_judge
from judging.math_judge import MathJudge
from judging.rewards import VERIFIERS, Verifier
from test_arithmetic import MALFORMED
from text.data import problem_rows, to_pairs, to_problems

EVERY = ["integer", "math_verify"]


@functools.cache
def verifier(name: str) -> Verifier:
    if name == "math_verify":
        pytest.importorskip("math_verify")
    return VERIFIERS[name]()


def in_a_thread(function: Callable[[], object]) -> object:
    """What the function returns or raises in a thread that is not the main one."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "hung"
    return found[0]


def test_there_are_no_other_verifiers() -> None:
    assert sorted(VERIFIERS) == EVERY


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
    assert verifier(name).reward([], []) == []
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


@pytest.mark.parametrize("completion", MALFORMED.values(), ids=MALFORMED)
def test_malformed_completions_are_worth_nothing_to_the_integer_verifier(completion: str) -> None:
    assert verifier("integer").reward([completion, completion], ["5", "-5"]) == [0.0, 0.0]
    assert verifier("integer").read(completion) is None


#: What a lenient reader may take for a 5. Some of it math-verify reads so: it has no format to insist on.
READ_AS_FIVE = {
    "nothing behind it but blanks", "another case", "not at the start of a line", "the same answer twice",
    "a good and a bad answer", "plus", "a tab", "no-break space", "zero-width space", "superscript", "NUL",
    "NUL in front", "Windows line ends", "a replacement character", "10,000 answers", "no answer", "several answers",
    "two signs", "sign apart", "typographic minus", "a unit", "two numbers",
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_completions_never_stop_math_verify(kind: str) -> None:
    with no_hang(30):
        assert verifier("math_verify").reward([MALFORMED[kind]], ["5"]) in ([0.0], [1.0])
        answer = verifier("math_verify").read(MALFORMED[kind])
    assert answer is None or isinstance(answer, str)
    if kind not in READ_AS_FIVE:
        assert verifier("math_verify").reward([MALFORMED[kind]], ["5"]) == [0.0]


@pytest.mark.parametrize(
    ("completion", "wanted", "reward"),
    [
        (r"\boxed{12}", "12", 1.0),
        (r"so it is \boxed{13}", "12", 0.0),
        ("The answer is 1,234", "1234", 1.0),
        ("The answer is $1,234.00", "1234", 1.0),
        ("He pays 3 * 4 = 12 dollars.\n#### 12", "12", 1.0),
        ("#### 5", "5", 1.0),
        ("#### 5", "6", 0.0),
        ("Answer: 3/4", "0.75", 1.0),
        ("Answer: 0.75", "3/4", 1.0),
        (r"$\frac{3}{4}$", "0.75", 1.0),
        ("Answer: 12.0", "12", 1.0),
        ("Answer: 1,000", "1000", 1.0),
        ("Answer: -7\n", "-7", 1.0),
        ("Answer: 7\n", "-7", 0.0),
        ("Answer: 5\nAnswer: 6\n", "6", 1.0),  # the last one counts
        ("Answer: 5\nAnswer: 6\n", "5", 0.0),
        ("I do not know", "5", 0.0),
        ("", "5", 0.0),
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


@pytest.mark.parametrize("name", EVERY)
def test_rewards_are_given_off_the_main_thread(name: str) -> None:
    def judge() -> object:
        return verifier(name).reward(["Answer: 5", "Answer: 6", ""], ["5", "5", "5"])

    assert in_a_thread(judge) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("completion", [r"\boxed{9^{9^{9}}}", "9**9**9**9", r"\boxed{100000000!}"])
def test_an_expression_that_takes_for_ever_is_worth_nothing(completion: str) -> None:
    """A policy that writes a tower of powers must not stop its own training, whatever thread judges it."""
    assert in_a_thread(lambda: verifier("math_verify").reward([completion, "Answer: 5"], ["5", "5"])) == [0.0, 1.0]


def test_a_judge_that_hangs_or_dies_is_replaced() -> None:
    pytest.importorskip("math_verify")
    judge = MathJudge(seconds=0.2)
    assert judge("Answer: 5", "5") == ("5", True)
    first = judge._process
    assert first is not None
    begin = time.monotonic()
    assert judge("9**9**9**9", "5") == (None, False)  # killed, before math-verify's own time-out
    assert time.monotonic() - begin < 1.5
    assert first.poll() is not None
    assert judge("Answer: 5", "5") == ("5", True)
    second = judge._process
    assert second is not None
    second.kill()
    second.wait()
    assert judge("Answer: 5", "5") == ("5", True)


def test_a_missing_math_verify_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'geomcallbacks\[math\]'"):
        VERIFIERS["math_verify"]()


def test_several_threads_may_judge_at_once() -> None:
    found: dict[int, list[float]] = {}

    def judge(number: int) -> None:
        completions = [f"Answer: {number + i}" for i in range(5)]
        found[number] = verifier("math_verify").reward(completions, [str(number + 2)] * 5)

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [0.0, 0.0, 1.0, 0.0, 0.0] for number in range(4)}
    assert math_judge.SECONDS >= 5  # math-verify's own time-outs, of parsing and comparing, come first
