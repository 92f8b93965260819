"""From texts to token rows: which texts are long enough, and what a tokenizer makes of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from geomcallbacks.probing.columns import text_of
from geomcallbacks.probing.tokenizer import Markup, repeated_front, row_of, text_tokenizer

_CHARACTERS = 100_000  # that are tokenised of a text at first, and 64 for each token that is wanted
_NUMBERS = 1 << 16  # of the order of texts that are made at once


@dataclass(frozen=True)
class TokenRows:
    """Texts as token ids.

    Attributes:
        rows: token ids of each text that was long enough.
        taken: number of the text that each row came from.
        dropped: how many texts were too short, or none.
    """

    rows: list[list[int]]
    taken: list[int]
    dropped: int


def tokenise(
    texts: Iterable[Any], tokenizer: Any, *, size: int, max_length: int, seed: int, min_length: int
) -> TokenRows:
    """Tokenise texts until `size` of them were long enough. See `ProbeSet.from_texts`."""
    limits = {"size": (size, 1), "min_length": (min_length, 2), "max_length": (max_length, min_length)}
    for name, (value, least) in limits.items():
        if not isinstance(value, int) or not least <= value < 2**31:
            raise ValueError(f"{name}={value!r} makes no probe: give a whole number of at least {least}")
    if isinstance(texts, str | bytes | Mapping):
        raise TypeError(f"texts is one {type(texts).__name__}: give a list of texts, or a stream")
    if isinstance(texts, set | frozenset):
        kind = type(texts).__name__
        raise TypeError(f"texts is a {kind}, whose order differs between processes: give a list, sorted(texts) say")
    read = _Reader(tokenizer, max_length)
    rows: list[list[int]] = []
    taken: list[int] = []
    seen = none = 0
    for index, value in _visit(texts, seed):
        seen += 1
        text = text_of(value, f"text {index} is")
        if text is None:
            none += 1
            continue
        ids = read.row(text, index)
        if len(ids) >= min_length:
            rows.append(ids)
            taken.append(index)
        if len(rows) == size:
            read.warn_of_repeated_fronts(seen)
            return TokenRows(rows, taken, dropped=seen - size)
    if seen == 0:
        raise ValueError("the probe is empty: there are no texts")
    enough = f"{len(rows)} of {seen} texts have min_length={min_length} tokens"
    enough += f" (None or NaN: {none})" if none else ""
    raise ValueError(f"size={size}, but only {enough}: give more texts, or a smaller size or min_length")


def _visit(texts: Iterable[Any], seed: int) -> Iterator[tuple[int, Any]]:
    """Yield a list in an order drawn from `seed`, a stream in its own, each text with its number."""
    if not isinstance(texts, Sequence):
        yield from enumerate(texts)
        return
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(texts), generator=generator, device="cpu")
    for part in torch.split(order, _NUMBERS):  # a list of all numbers takes more memory than many texts
        for index in part.tolist():
            yield index, texts[index]


class _Reader:
    """Makes rows of texts, with a copy of the tokenizer: calling a fast one sets truncation and padding on it."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = copy.deepcopy(text_tokenizer(tokenizer))
        if getattr(self._tokenizer, "truncation_side", None) == "left":  # as trainers on preferences set it
            self._tokenizer.truncation_side = "right"
        self._max_length = max_length
        self._markup = Markup(self._tokenizer)
        self._repeated = 0

    def row(self, text: str, number: int) -> list[int]:
        """Return the first token ids of a text, with BOS once as the tokenizer adds it, and no mark of an end."""
        # One token more than wanted: an EOS that the tokenizer puts behind a cut text goes, and the row stays full.
        ids = self._beginning(text, number, self._max_length + 1)
        if front := repeated_front(self._tokenizer, text, ids):
            self._repeated += 1
            ids = self._beginning(text, number, self._max_length + 1 + front)[front:]
        return self._markup.without_end(ids[: self._max_length])

    def warn_of_repeated_fronts(self, seen: int) -> None:
        """Say how many of the texts that were seen had the tokenizer's BOS already."""
        if self._repeated:
            warnings.warn(
                f"{self._repeated} of {seen} texts begin with the BOS that the tokenizer adds, as rendered chats do: "
                "one is kept",
                stacklevel=4,
            )

    def _beginning(self, text: str, number: int, tokens: int) -> list[int]:
        # A tokenizer reads the whole text before it cuts: minutes, for a document of 100 MB.
        characters = _CHARACTERS + 64 * self._max_length
        while True:
            part = text[:characters]
            ids = row_of(self._tokenizer, part, number, truncation=True, max_length=tokens, padding=False)
            if len(ids) >= tokens or characters >= len(text):
                return ids
            characters *= 8
