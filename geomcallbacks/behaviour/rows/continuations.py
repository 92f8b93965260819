"""Held-out text cut into prompts and what follows them, for the ∞-gram comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence

from geomcallbacks.behaviour.arguments import check_positive
from geomcallbacks.behaviour.rows.completions import Completions


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
        raise ValueError(
            f"rows={rows}: the documents have only {len(windows)} windows of {length} tokens; lower either"
        )
    drawn = random.Random(seed).sample(windows, rows)
    return Completions([window[:prompt_length] for window in drawn], [window[prompt_length:] for window in drawn])
