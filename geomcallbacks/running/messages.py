"""Messages: warnings given once, and foreign text made fit for a terminal or a file."""

from __future__ import annotations

import re
import warnings
from typing import Literal

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
            warnings.warn(message, stacklevel=4)


def printable(text: str) -> str:
    """Return `text` without what would act on a terminal, and without secrets in the addresses that it holds.

    Control characters and marks that turn the direction of writing become U+FFFD; line breaks and tabs stay. Of
    addresses, name, password and query are left out.
    """
    kept = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    return _ADDRESS.sub(lambda found: found["scheme"] + found["place"] + ("?…" if found["query"] else ""), kept)
