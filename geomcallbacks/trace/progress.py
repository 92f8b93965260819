"""While a command runs: one call ahead of the work, and a bar with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Thread
from typing import Any, Generic, TypeVar

Found = TypeVar("Found")


class Ahead(Generic[Found]):
    """A call in a thread that does not keep the process alive."""

    def __init__(self, call: Callable[[], Found]) -> None:
        self._found: list[Found] = []
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the call has ended, one way or the other."""
        self._thread.join()

    def result(self) -> Found:
        """What the call gave, or raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _run(self, call: Callable[[], Found]) -> None:
        try:
            self._found.append(call())
        except Exception as error:
            self._error = error


class Bar:
    """A progress bar with the time left, or nothing."""

    def __init__(self, shown: bool, total: int, done: int) -> None:
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="checkpoint", disable=None, dynamic_ncols=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, what: str) -> None:
        """What is in hand."""
        if self._bar is not None:
            self._bar.set_description(what)

    def advance(self) -> None:
        """One more is done."""
        if self._bar is not None:
            self._bar.update()

    def write(self, line: str) -> None:
        """A line on stderr that does not break the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)
