"""Messages: what is told of a run, and never ends or changes it."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

#: What a failed measurement does: warn once and go on, or raise.
OnError = Literal["warn", "raise"]

#: Name and password of an address, and its query: the hub's links for downloads are signed there.
_ADDRESS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#'\"]*@)?(?P<place>[^\s?#'\"<>]*)(?P<query>\?[^\s'\"<>]*)?",
    re.IGNORECASE,
)


class WarnOnce:
    """Give the first warning of each key, and swallow the others."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, key: str, message: str) -> None:
        """Warn with `message`, unless `key` has been warned of."""
        if key not in self._given:
            self._given.add(key)
            tell(message)


def tell(message: str) -> None:
    """Warn, whatever the user's filters say: none may hide a lost number, and none may make it end a run.

    Those who redirect warnings (pytest, `logging.captureWarnings`) are given it as any other.
    """
    with suppress(Exception):  # a stderr that is closed
        warnings.showwarning(UserWarning(message), UserWarning, "geomcallbacks", 0, line="")


def show(line: str, write: Callable[[str], Any] = print) -> None:
    """Have `write` put a line onto the terminal; replace the characters that stdout lacks; never raise."""
    with suppress(Exception):
        try:
            write(line)
        except UnicodeEncodeError:
            encoding = getattr(sys.stdout, "encoding", None) or "ascii"
            write(line.encode(encoding, "replace").decode(encoding))


def reason_of(error: BaseException) -> str:
    """Return kind and text of an error, in one line fit for a file."""
    text = ""
    with suppress(Exception):  # an error whose own text fails
        text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str) -> str:
    """Return `text` without what would act on a terminal, and without secrets in the addresses that it holds.

    Control characters and marks that turn the direction of writing become U+FFFD; line breaks and tabs stay. Of
    addresses, name, password and query are left out.
    """
    kept = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    return _ADDRESS.sub(lambda found: found["scheme"] + found["place"] + ("?…" if found["query"] else ""), kept)
