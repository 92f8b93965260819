"""Rewards of the verifiable tasks: 1 for the right final answer, 0 for a wrong one or none.

A completion that cannot be read never raises: a policy that is being trained writes anything.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from text.arithmetic import read_answer

CHARACTERS = 2000
"""What math-verify reads of a completion: its end."""


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
        """Return the rewards of a batch, as ``trl.GRPOTrainer`` asks for them."""
        return [float(self.right(text, wanted)) for text, wanted in zip(completions, answer, strict=True)]


def integer_verifier() -> Verifier:
    """Return the verifier of the sums: one line ``Answer: <integer>``, see ``arithmetic.read_answer``."""
    return Verifier(read_answer, lambda completion, wanted: read_answer(completion) == int(wanted))


def math_verifier(seconds: int = 2) -> Verifier:
    """Return the verifier of GSM8K and its like: math-verify reads LaTeX and numbers, and compares their values.

    What takes longer than the time-out, such as ``9^{9^{9}}``, is worth nothing. The time-outs are signals, so the
    verifier judges in the main thread alone, where TRL calls its reward functions, and refuses any other.

    Args:
        seconds: Time-out of each reading and of each comparison.

    Raises:
        ImportError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ImportError("--verifier math_verify needs the extra: pip install 'geomcallbacks[math]'") from error

    def parsed(text: str) -> list[Any]:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("--verifier math_verify: judge in the main thread, its time-outs are signals")
        with contextlib.suppress(Exception):  # RecursionError, MemoryError
            return parse(text, parsing_timeout=seconds)
        return []

    def read(completion: str) -> str | None:
        found = parsed(completion[-CHARACTERS:])
        return str(found[-1]) if found else None

    def right(completion: str, wanted: str) -> bool:
        gold, found = parsed(f"\\boxed{{{wanted}}}"), parsed(completion[-CHARACTERS:])
        with contextlib.suppress(Exception):
            return bool(verify(gold, found, timeout_seconds=seconds))
        return False

    return Verifier(read, right)


VERIFIERS: dict[str, Callable[[], Verifier]] = {"integer": integer_verifier, "math_verify": math_verifier}
