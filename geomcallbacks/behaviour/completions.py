"""Completions: fixed rows of a prompt and what follows it, as token ids."""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

_FORMAT = "geomcallbacks.completions.v1"


class Completions:
    """Fixed rows of prompt ids and completion ids.

    Build them with `from_texts`, or from ready ids.

    Args:
        prompt_ids: tokens of each row's prompt, at least one.
        completion_ids: tokens of each row's completion, at least one.
        dropped: rows that were left out while these were built.

    Raises:
        ValueError: no rows, differing numbers of prompts and completions, an empty prompt or completion, a negative
            id.
    """

    def __init__(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], *, dropped: int = 0
    ) -> None:
        _check_pairs("prompt_ids", prompt_ids, "completion_ids", completion_ids)
        self.prompt_ids = [[int(token) for token in row] for row in prompt_ids]
        self.completion_ids = [[int(token) for token in row] for row in completion_ids]
        self.dropped = dropped
        for name, rows in (("prompt", self.prompt_ids), ("completion", self.completion_ids)):
            for index, row in enumerate(rows):
                if not row:
                    raise ValueError(
                        f"{name} {index} has no tokens, so nothing can be scored: leave the row out, or use a tokenizer"
                        " that adds BOS to prompts and append_eos=True for completions"
                    )
                if min(row) < 0:
                    raise ValueError(f"{name} {index} holds token id {min(row)}: ids are counted from 0")
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __repr__(self) -> str:
        tokens = sum(map(len, self.completion_ids))
        return f"Completions({len(self)} rows, {tokens} completion tokens, fingerprint={self.fingerprint})"

    @classmethod
    def from_texts(
        cls,
        prompts: Sequence[str],
        completions: Sequence[str],
        tokenizer: Any,
        *,
        max_length: int,
        append_eos: bool = True,
    ) -> Completions:
        """Tokenise prompts and completions apart, so that the boundary between them is a boundary of tokens.

        A prompt gets the BOS that the tokenizer adds and never an EOS; a completion gets no special token but, with
        `append_eos`, the EOS behind it. Rows are cut at `max_length` from the right; a row whose prompt alone fills
        it is left out and counted in `dropped`.

        Args:
            prompts: a prompt for each row.
            completions: the completion of each row.
            tokenizer: a Transformers tokenizer; it is copied, not changed.
            max_length: most tokens of a row, prompt and completion together.
            append_eos: end each completion with the tokenizer's EOS.

        Raises:
            ValueError: the two differ in number, no row is left, a prompt or completion has no tokens, or there is no
                EOS to append.
            TypeError: a text is not a string.
        """
        check_texts("prompts", prompts)
        check_texts("completions", completions)
        _check_pairs("prompts", prompts, "completions", completions)
        if max_length < 2:
            raise ValueError(f"max_length={max_length} has no room for a prompt and a completion: give 2 or more")
        eos = getattr(tokenizer, "eos_token_id", None)
        if append_eos and eos is None:
            raise ValueError("append_eos=True, and the tokenizer has no EOS token: give append_eos=False")
        prompt_rows = encode_prompts(prompts, tokenizer)
        completion_rows = _encode(completions, tokenizer, special=False)
        kept = [index for index, row in enumerate(prompt_rows) if len(row) < max_length]
        if not kept:
            raise ValueError(f"max_length={max_length} is filled by every prompt: give a larger one")
        ends: list[int] = [int(eos)] if append_eos and eos is not None else []
        return cls(
            [prompt_rows[index] for index in kept],
            [(completion_rows[index] + ends)[: max_length - len(prompt_rows[index])] for index in kept],
            dropped=len(prompt_rows) - len(kept),
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the rows' tokens."""
        if self._fingerprint is None:
            digest = hashlib.sha256(_FORMAT.encode())
            for prompt, completion in zip(self.prompt_ids, self.completion_ids, strict=True):
                digest.update(array("q", [len(prompt), len(completion), *prompt, *completion]).tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    @property
    def max_token_id(self) -> int:
        """The largest token id in any row."""
        return max(max(row) for row in (*self.prompt_ids, *self.completion_ids))

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest row."""
        return max(len(p) + len(c) for p, c in zip(self.prompt_ids, self.completion_ids, strict=True))


def encode_prompts(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each prompt, BOS as the tokenizer adds it, without a trailing EOS. The tokenizer is not changed."""
    eos = getattr(tokenizer, "eos_token_id", None)
    rows = _encode(prompts, tokenizer, special=True)
    for row in rows:
        while len(row) > 1 and row[-1] == eos:
            row.pop()
    return rows


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raise unless this is a non-empty list of strings."""
    if isinstance(texts, str):
        raise TypeError(f"{name} is a single string: give a list of strings")
    if not len(texts):
        raise ValueError(f"{name} is empty: give at least one")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] is a {type(text).__name__}: give a list of strings")


def _encode(texts: Sequence[str], tokenizer: Any, special: bool) -> list[list[int]]:
    # Calling a fast tokenizer sets truncation and padding on it for good: the caller's must not change.
    own = copy.deepcopy(tokenizer)
    rows = own(list(texts), add_special_tokens=special, padding=False, truncation=False, verbose=False)["input_ids"]
    return [[int(token) for token in row] for row in rows]


def _check_pairs(one: str, first: Sequence[Any], other: str, second: Sequence[Any]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} {one} and {len(second)} {other}: give one of each for every row")
    if not len(first):
        raise ValueError(f"{one} is empty: give at least one row")
