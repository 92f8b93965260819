"""From texts to token rows: which texts are long enough, and what a tokenizer makes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_CHARACTERS = 100_000  # that are tokenised of a text at first, and 64 for each token that is wanted


@dataclass(frozen=True)
class TokenRows:
    """Texts as token ids.

    Attributes:
        rows: token ids of each text that was long enough.
        taken: number of the text that each row came from.
        dropped: how many texts were too short.
    """

    rows: list[list[int]]
    taken: list[int]
    dropped: int


def column_of(dataset: Any, name: str) -> Any:
    """Return the texts of one column: a list, or an iterator where the data set is streamed.

    Raises:
        ValueError: there is no such column.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is not None and name not in columns:
        raise ValueError(f"text_column={name!r} is not in the data set: it has {', '.join(columns)}")
    if hasattr(dataset, "__len__"):
        return list(dataset[name])
    return (row[name] for row in dataset)


def tokenise(
    texts: Iterable[str], tokenizer: Any, *, size: int, max_length: int, seed: int, min_length: int
) -> TokenRows:
    """Tokenise texts until `size` of them were long enough. See `ProbeSet.from_texts`."""
    limits = {"size": (size, 1), "min_length": (min_length, 2), "max_length": (max_length, min_length)}
    for name, (value, least) in limits.items():
        if not isinstance(value, int) or not least <= value < 2**31:
            raise ValueError(f"{name}={value!r} makes no probe: give a whole number of at least {least}")
    if isinstance(texts, str | bytes | Mapping):
        raise TypeError(f"texts is one {type(texts).__name__}: give a list of texts, or a stream")
    # Calling a fast tokenizer sets truncation and padding on it for good: the caller's must not change.
    tokenizer = copy.deepcopy(tokenizer)
    rows: list[list[int]] = []
    taken: list[int] = []
    seen = 0
    for index, text in _visit(texts, seed):
        seen += 1
        if not isinstance(text, str):
            raise TypeError(f"text {index} is a {type(text).__name__}, not a string: clean the texts before probing")
        try:
            ids = _token_ids(tokenizer, text, max_length)
        except (TypeError, UnicodeError) as error:  # half of a surrogate pair: JSON can write one
            raise ValueError(f"text {index} is no Unicode that a tokenizer takes: clean the texts ({error})") from error
        if len(ids) >= min_length:
            rows.append(ids)
            taken.append(index)
        if len(rows) == size:
            return TokenRows(rows, taken, dropped=seen - size)
    if seen == 0:
        raise ValueError("the probe is empty: there are no texts")
    enough = f"{len(rows)} of {seen} texts have min_length={min_length} tokens"
    raise ValueError(f"size={size}, but only {enough}: give more texts, or a smaller size or min_length")


def _visit(texts: Iterable[str], seed: int) -> Iterator[tuple[int, str]]:
    """Yield a list in an order drawn from `seed`, a stream in its own, each text with its number."""
    if not isinstance(texts, Sequence):
        yield from enumerate(texts)
        return
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randperm(len(texts), generator=generator).tolist():
        yield index, texts[index]


def _token_ids(tokenizer: Any, text: str, max_length: int) -> list[int]:
    """Return the first `max_length` token ids, without an EOS behind them."""
    # A tokenizer reads the whole text before it cuts: minutes, for a document of 100 MB.
    characters = _CHARACTERS + 64 * max_length
    while True:
        # One token more than wanted: an EOS that the tokenizer puts behind a cut text goes, and the row stays full.
        part = tokenizer(text[:characters], truncation=True, max_length=max_length + 1, padding=False)
        ids = [int(token) for token in part["input_ids"]]
        if len(ids) > max_length or characters >= len(text):
            break
        characters *= 8
    ids = ids[:max_length]
    while ids and ids[-1] == getattr(tokenizer, "eos_token_id", None):
        ids.pop()
    return ids
