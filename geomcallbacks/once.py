"""Warnings that are given once, however often their cause comes back."""

from __future__ import annotations

import warnings


class WarnOnce:
    """Gives the first warning of each key and swallows the others."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, key: str, message: str) -> None:
        """Warn with `message`, unless `key` has been warned of."""
        if key not in self._given:
            self._given.add(key)
            warnings.warn(message, stacklevel=4)
