"""Hostile input, tried by the thousand: what each input must come to, and within what time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

#: An input takes milliseconds; one that takes so long hangs.
SECONDS = 20


@contextmanager
def no_hang(seconds: int = SECONDS) -> Iterator[None]:
    """Fails what would not end."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survive(strategy: SearchStrategy[Any], check: Callable[[Any], None], count: int) -> None:
    """Give `count` inputs to `check`, which fails where one comes to neither a right answer nor a clear error.

    The same inputs each time. The first one that fails is made small and shown.
    """

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def each(value: Any) -> None:
        with no_hang():
            check(value)

    each()


def refused(error: BaseException, *named: str) -> None:
    """Holds that an error says something, and names one of what may be wrong."""
    text = str(error)
    assert len(text) > 15, f"{error!r} says nothing"
    assert not named or any(name in text for name in named), f"{error!r} names none of {named}"
