"""Rewards of the verifiable tasks: 1 for the right final answer, 0 for a wrong one or none.

A completion that cannot be read never raises: a policy that is being trained writes anything.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from text.arithmetic import read_answer

from judging.math_judge import MathJudge


@dataclass(frozen=True)
class Verifier:
    """How a task reads and judges a completion.

    Attributes:
        read: completion -> its final answer, or None; equal answers are equal values.
        right: (completion, wanted answer) -> whether the completion is right.
    """

    read: Callable[[str], Hashable | None]
    right: Callable[[str, str], bool]

    def reward(self, completions: list[str], answer: list[str], **_: object) -> list[float]:
        """Returns the rewards of a batch, as ``trl.GRPOTrainer`` asks for them."""
        return [float(self.right(text, wanted)) for text, wanted in zip(completions, answer, strict=True)]


def integer_verifier() -> Verifier:
    """Returns the verifier of the sums: one line ``Answer: <integer>``, see ``arithmetic.read_answer``."""

    def right(completion: str, wanted: str) -> bool:
        found = read_answer(completion)
        return found is not None and found == int(wanted)

    return Verifier(read_answer, right)


def math_verifier() -> Verifier:
    """Returns the verifier of GSM8K and its like: ``math_verify`` reads LaTeX and numbers, and compares their values.

    Raises:
        ImportError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("--verifier math_verify needs the extra: pip install 'geomcallbacks[math]'")
    judge = MathJudge()
    return Verifier(
        lambda completion: judge(completion, "0")[0], lambda completion, wanted: judge(completion, wanted)[1]
    )


VERIFIERS: dict[str, Callable[[], Verifier]] = {"integer": integer_verifier, "math_verify": math_verifier}
