"""The offline verifiable task: small sums with worked solutions, mixed into the pretraining text."""

from __future__ import annotations

import random


def arithmetic_texts(characters: int, seed: int = 0, wrong: float = 0.15) -> list[str]:
    """Generates worked sums, ten a text, until there are so many characters.

    Each problem is solved in one of four styles, and some solutions go wrong in one step and carry the error
    on, so that reinforcement learning later finds several ways to sharpen. Every one ends in ``Answer:
    <integer>``.

    Args:
        characters: Stop at the first text that reaches this many.
        seed: The same seed gives the same texts.
        wrong: The share of wrong solutions.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    size = 0
    while size < characters:
        texts.append("\n".join(worked_sum(rng, wrong) for _ in range(10)))
        size += len(texts[-1])
    return texts


def worked_sum(rng: random.Random, wrong: float) -> str:
    """Returns one problem of two or three terms and a worked solution, wrong with probability ``wrong``."""
    terms = [rng.randint(2, 99) for _ in range(rng.choice((2, 3)))]
    signs = [rng.choice("+-") for _ in terms[1:]]
    slip = rng.randrange(len(signs)) if rng.random() < wrong else None
    total, steps = terms[0], []
    for index, (sign, term) in enumerate(zip(signs, terms[1:], strict=True)):
        value = total + term if sign == "+" else total - term
        value += rng.choice((-10, -1, 1, 10)) if index == slip else 0
        steps.append((f"{total} {sign} {term}", value))
        total = value
    problem = f"{terms[0]}" + "".join(f" {sign} {term}" for sign, term in zip(signs, terms[1:], strict=True))
    working = {
        "direct": "",
        "equations": "Work: " + "; ".join(f"{left} = {value}" for left, value in steps) + "\n",
        "prose": "First " + ", then ".join(f"{left} is {value}" for left, value in steps) + ".\n",
        "code": "".join(f">>> {left}\n{value}\n" for left, value in steps),
    }
    return f"Question: {problem}\n{working[rng.choice(list(working))]}Answer: {total}\n"
