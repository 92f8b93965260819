"""The ∞-gram model by brute force, in plain Python: what the index is held against."""

from __future__ import annotations

from collections.abc import Sequence


def occurrences(documents: Sequence[Sequence[int]], gram: Sequence[int]) -> int:
    """How often `gram` stands in the documents; an n-gram crosses no boundary."""
    gram = list(gram)
    return sum(
        list(document[start : start + len(gram)]) == gram
        for document in documents
        for start in range(len(document) - len(gram) + 1)
    )


def infinigram(documents: Sequence[Sequence[int]], context: Sequence[int], token: int) -> tuple[float, int]:
    """Liu et al. 2024: the share of `token` after the longest end of `context` that occurs, and that end's length.

    Without any context, of all tokens: the index counts a separator before each document among them.
    """
    for length in range(len(context), 0, -1):
        end = list(context[len(context) - length :])
        if seen := occurrences(documents, end):
            return occurrences(documents, [*end, token]) / seen, length
    return occurrences(documents, [token]) / sum(len(document) + 1 for document in documents), 0
