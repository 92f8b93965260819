"""Completions: fixed rows of a prompt and what follows it, as token ids; from texts, or cut from held-out documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from geomcallbacks.behaviour.arguments import check_equal_lengths, check_positive, check_texts
from geomcallbacks.behaviour.rows import token_ids
from geomcallbacks.probing.tokenizer import text_tokenizer


class Completions:
    """Fixed rows of prompt ids and completion ids.

    Build them with `from_texts`, or from ready ids.

    Args:
        prompt_ids: tokens of each row's prompt, at least one.
        completion_ids: tokens of each row's completion, at least one.

    Raises:
        ValueError: no rows, differing numbers of prompts and completions, an empty prompt or completion, a negative
            id.
    """

    def __init__(self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> None:
        check_equal_lengths(prompt_ids=prompt_ids, completion_ids=completion_ids)
        self.prompt_ids = token_ids.token_lists("prompt", prompt_ids)
        self.completion_ids = token_ids.token_lists("completion", completion_ids)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __repr__(self) -> str:
        return f"Completions({len(self)} rows, fingerprint={self.fingerprint})"

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

        A prompt gets the BOS that the tokenizer adds, once, and never an EOS; a completion gets no special token but,
        with `append_eos`, the EOS behind it. Rows are cut at `max_length` from the right; a row whose prompt alone
        fills it is left out.

        Args:
            prompts: a prompt for each row.
            completions: the completion of each row.
            tokenizer: a Transformers tokenizer, or a processor that holds one; it is copied, not changed.
            max_length: most tokens of a row, prompt and completion together.
            append_eos: end each completion with the tokenizer's EOS.

        Raises:
            ValueError: the two differ in number, no row is left, a prompt or completion has no tokens, or there is no
                EOS to append.
            TypeError: a text is not a string, or `tokenizer` is none.
        """
        tokenizer = text_tokenizer(tokenizer)
        check_texts("prompts", prompts)
        check_texts("completions", completions)
        check_equal_lengths(prompts=prompts, completions=completions)
        end = [getattr(tokenizer, "eos_token_id", None)] if append_eos else []
        if None in end:
            raise ValueError("append_eos=True, and the tokenizer has no EOS token: give append_eos=False")
        prompt_rows = token_ids.encode_prompts(prompts, tokenizer)
        rows = zip(prompt_rows, token_ids.encode(completions, tokenizer, special=False), strict=True)
        kept = [(prompt, [*row, *end][: max_length - len(prompt)]) for prompt, row in rows if len(prompt) < max_length]
        if not kept:
            raise ValueError(f"max_length={max_length} is filled by every prompt: give a larger one")
        return cls(*zip(*kept, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the rows' tokens."""
        rows = zip(self.prompt_ids, self.completion_ids, strict=True)
        lengths_and_ids = ([len(prompt), len(completion), *prompt, *completion] for prompt, completion in rows)
        return token_ids.fingerprint_of("geomcallbacks.completions.v1", lengths_and_ids)

    @property
    def max_token_id(self) -> int:
        """The largest token id in any row."""
        return max(max(row) for row in (*self.prompt_ids, *self.completion_ids))

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest row."""
        return max(len(p) + len(c) for p, c in zip(self.prompt_ids, self.completion_ids, strict=True))


def continuations(
    documents: Sequence[Sequence[int]], *, prompt_length: int, answer_length: int, rows: int, seed: int = 0
) -> Completions:
    """Held-out text as a prompt and what follows it, both of a fixed number of tokens.

    Each document is cut into windows that do not overlap, and `rows` of all windows are drawn. Answers of one length
    matter: a sum of log-probabilities falls with every token, so that with answers of several lengths two models
    agree on the order by length alone.

    Args:
        documents: token ids of held-out documents, without special tokens. No row crosses from one into the next.
        prompt_length: tokens of each prompt.
        answer_length: tokens of each answer.
        rows: windows that are drawn.
        seed: of the draw, by a generator of its own.

    Raises:
        ValueError: a length or number is not positive, or there are fewer windows than `rows`.
    """
    check_positive(prompt_length=prompt_length, answer_length=answer_length, rows=rows)
    length = prompt_length + answer_length
    windows = [
        document[start : start + length]
        for document in documents
        for start in range(0, len(document) - length + 1, length)
    ]
    if len(windows) < rows:
        raise ValueError(f"rows={rows}: the documents have only {len(windows)} windows of {length} tokens; lower it")
    drawn = random.Random(seed).sample(windows, rows)
    return Completions([window[:prompt_length] for window in drawn], [window[prompt_length:] for window in drawn])
