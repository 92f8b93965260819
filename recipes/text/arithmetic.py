"""The offline verifiable task: small sums with worked solutions, mixed into the pretraining text."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

LARGEST = 99
"""Terms are integers from 2 to this."""
ANSWERS = {2: range(2 - LARGEST, 2 * LARGEST + 1), 3: range(2 - 2 * LARGEST, 3 * LARGEST + 1)}
"""Answers that problems of so many terms can have."""

_ANSWER_LINE = re.compile(r"^Answer:(.*)$", re.MULTILINE)
_INTEGER = re.compile(r"-?[0-9]{1,12}")


@dataclass(frozen=True)
class Problem:
    """A sum of integers, such as ``47+8-23``.

    Attributes:
        terms: The integers.
        signs: "+" or "-" before each term but the first.
    """

    terms: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def steps(self) -> list[str]:
        """What is added to the first term, one after the other: "+8", "-23"."""
        return [f"{sign}{term}" for sign, term in zip(self.signs, self.terms[1:], strict=True)]

    @property
    def question(self) -> str:
        """The problem as it stands in a prompt."""
        return f"{self.terms[0]}" + "".join(self.steps)

    @property
    def answer(self) -> int:
        """The right value."""
        return self.terms[0] + sum(map(int, self.steps))

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept for tests: one in ten, by a hash of the question, in every corpus."""
        return hashlib.sha256(self.question.encode()).digest()[0] < 26


def draw_problem(rng: random.Random, terms: int, held_out: bool) -> Problem:
    """Draw a problem of so many terms from those that are held out, or from the others."""
    while True:
        values = tuple(rng.randint(2, LARGEST) for _ in range(terms))
        problem = Problem(values, tuple(rng.choice("+-") for _ in values[1:]))
        if problem.held_out == held_out:
            return problem


def distinct_problems(count: int, terms: tuple[int, ...], held_out: bool, seed: int) -> list[Problem]:
    """Draw ``count`` different problems, with each number of ``terms`` in turn.

    Raises:
        ValueError: There are not so many.
    """
    rng, found, repeated = random.Random(seed), dict[str, Problem](), 0
    while len(found) < count:
        wanted = terms[len(found) % len(terms)]
        problem = draw_problem(rng, wanted, held_out)
        repeated = repeated + 1 if problem.question in found else 0
        if repeated == 20_000:  # there are 19,208 sums of two terms
            raise ValueError(
                f"{count} problems: only {len(found)} different problems were found, those of {wanted} terms have run "
                f"out; ask for fewer"
            )
        found[problem.question] = problem
    return list(found.values())


def arithmetic_texts(characters: int, seed: int = 0, wrong: float = 0.15) -> list[str]:
    """Generate worked sums of two or three terms, one a text, until there are so many characters.

    Each is solved in one of four styles, and some solutions go wrong in one step and carry the error on, so that
    reinforcement learning later finds several ways to sharpen. Every one ends in ``Answer: <integer>``. Held-out
    problems do not occur.

    Args:
        characters: Stop at the first text that reaches this many.
        seed: The same seed gives the same texts.
        wrong: The share of wrong solutions.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    size = 0
    while size < characters:
        problem = draw_problem(rng, rng.choice((2, 3)), held_out=False)
        texts.append(prompt_of(problem.question) + worked_solution(problem, rng, wrong))
        size += len(texts[-1])
    return texts


def prompt_of(question: str) -> str:
    """Return the prompt of a question; ``worked_solution`` is what may follow it."""
    return f"Question: {question}\n"


def worked_solution(problem: Problem, rng: random.Random, wrong: float = 0.0) -> str:
    """Return a solution in one of four styles, wrong in one step with probability ``wrong``."""
    slip = rng.randrange(len(problem.signs)) if rng.random() < wrong else None
    total, equations = problem.terms[0], []
    for index, step in enumerate(problem.steps):
        value = total + int(step) + (rng.choice((-10, -1, 1, 10)) if index == slip else 0)
        equations.append((f"{total}{step}", value))
        total = value
    working = {
        "direct": "",
        "equations": "Work: " + "; ".join(f"{left}={value}" for left, value in equations) + "\n",
        "prose": "First " + ", then ".join(f"{left} is {value}" for left, value in equations) + ".\n",
        "code": "".join(f">>> {left}\n{value}\n" for left, value in equations),
    }
    return f"{working[rng.choice(list(working))]}Answer: {total}\n"


def read_answer(completion: str) -> int | None:
    """Read the integer of the one line that begins with ``Answer:``.

    Only ASCII digits count, at most twelve of them. None where there is no such line, more than one, or something
    else in it: a completion that hedges between answers has not answered.
    """
    lines = _ANSWER_LINE.findall(completion)
    if len(lines) != 1 or not _INTEGER.fullmatch(lines[0].strip(" ")):
        return None
    return int(lines[0])
