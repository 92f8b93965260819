"""Lists of token ids: made from text, checked, and named by a fingerprint."""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from geomcallbacks.probing.tokenizer import repeated_front, rows_of, text_tokenizer


def encode(texts: Sequence[str], tokenizer: Any, *, special: bool) -> list[list[int]]:
    """Token ids of each text, with the tokenizer's special tokens or without. The tokenizer is not changed.

    Raises:
        TypeError: `tokenizer` is none.
        ValueError: a text is no Unicode.
    """
    return _encoded(texts, _copied(tokenizer), special)


def encode_prompts(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each prompt, BOS once as the tokenizer adds it, without a trailing EOS, tokenizer unchanged."""
    own = _copied(tokenizer)
    eos = getattr(own, "eos_token_id", None)
    rows = _encoded(prompts, own, special=True)
    for prompt, row in zip(prompts, rows, strict=True):
        del row[: repeated_front(own, prompt, row)]
        while len(row) > 1 and row[-1] == eos:
            row.pop()
    return token_lists("prompt", rows)


def _copied(tokenizer: Any) -> Any:
    """Return a copy: calling a fast tokenizer sets truncation and padding on it for good."""
    return copy.deepcopy(text_tokenizer(tokenizer))


def _encoded(texts: Sequence[str], own: Any, special: bool) -> list[list[int]]:
    return rows_of(own, list(texts), add_special_tokens=special, padding=False, truncation=False, verbose=False)


def token_lists(name: str, rows: Iterable[Iterable[int]]) -> list[list[int]]:
    """Rows of ids as lists of whole numbers.

    Raises:
        ValueError: a row has none, or a negative one; `name` says what it is a row of.
    """
    lists = [[int(token) for token in row] for row in rows]
    for index, row in enumerate(lists):
        if not row:
            raise ValueError(f"{name} {index} has no tokens: leave it out, or have BOS and EOS added")
        if min(row) < 0:
            raise ValueError(f"{name} {index} holds token id {min(row)}: ids are counted from 0")
    return lists


def fingerprint_of(kind: str, rows: Iterable[Sequence[int]]) -> str:
    """16 hexadecimal digits of the SHA-256 over the name of a format and rows of whole numbers."""
    digest = hashlib.sha256(kind.encode())
    for row in rows:
        digest.update(array("q", row).tobytes())
    return digest.hexdigest()[:16]


def check_unchanged(path: str | Path, found: str, recorded: str) -> None:
    """Raise ``ValueError`` unless what a file holds has the fingerprint that was recorded in it."""
    if found != recorded:
        raise ValueError(f"{path} says {recorded} and holds {found}: it was changed after it was saved; build it again")
