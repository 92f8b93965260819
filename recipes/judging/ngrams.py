"""Counts of the n-grams of a text, and what a model of them expects next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_BACK_OFF = 0.4
"""What a shorter context costs, in Stupid Backoff (Brants et al. 2007, section 4)."""

Codes = np.ndarray[Any, np.dtype[np.int64]]


class NgramCounts:
    """How often each run of 1 to ``order`` tokens comes in some documents, none of them across two documents.

    An n-gram is found by its *code* among all n-grams of its length: those that share their first n − 1 tokens have
    neighbouring codes, since the key that they are sorted by is (code of the first n − 1 tokens, last token).

    Args:
        documents: Token ids of each document.
        order: Tokens of the longest n-grams.
    """

    def __init__(self, documents: Sequence[Sequence[int]], order: int) -> None:
        self.order = order
        tokens = np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])
        # How many tokens of its own document end at each place: a longer n-gram would begin in the one before.
        room = np.concatenate([np.arange(1, len(document) + 1) for document in documents])
        self.base = int(tokens.max()) + 1
        self._levels: list[tuple[Codes, Codes]] = []  # keys in order, and their counts, for each length
        codes = np.zeros(len(tokens), dtype=np.int64)
        for length in range(1, order + 1):
            ends = np.flatnonzero(room >= length)
            keys = codes[ends - 1] * self.base + tokens[ends]
            keys, codes[ends], counts = np.unique(keys, return_inverse=True, return_counts=True)
            self._levels.append((keys, counts))
        self.total = len(tokens)

    def counts(self, ngrams_mn: Codes) -> Codes:
        """Return how often each of (m, n) n-grams of 1 to ``order`` tokens comes, (m,)."""
        code_m, known_m = self._codes(ngrams_mn)
        return np.where(known_m, self._levels[ngrams_mn.shape[1] - 1][1][code_m], 0)

    def commonest_next(self, contexts_mn: Codes) -> tuple[Codes, Codes, Codes]:
        """Return what comes most often behind each of (m, n) contexts of 1 to ``order`` − 1 tokens.

        Returns:
            The token (m,) (the smallest where several come as often; −1 where none does), how often it does (m,), and
            how often any token does (m,).
        """
        code_m, known_m = self._codes(contexts_mn)
        (contexts, _), (keys, counts) = self._levels[contexts_mn.shape[1] - 1 : contexts_mn.shape[1] + 1]
        followed, first = np.unique(keys // self.base, return_index=True)
        # Sorted by context, and within one by falling count: the best of each context stands where the context begins.
        best, totals = np.full(len(contexts) + 1, -1), np.zeros(len(contexts) + 1, dtype=np.int64)
        best[followed] = np.lexsort((keys, -counts, keys // self.base))[first]
        np.add.at(totals, keys // self.base, counts)
        best_m = np.where(known_m, best[code_m], -1)
        token_m, count_m = np.append(keys % self.base, -1)[best_m], np.append(counts, 0)[best_m]
        return token_m, count_m, np.where(known_m, totals[code_m], 0)

    def log_scores(self, context: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
        """Return how an n-gram model ranks options of equal length behind a context: the log of Stupid Backoff scores.

        A token that never comes is given the share of half a token.
        """
        options_mk = np.asarray(options, dtype=np.int64)
        rows_mt = np.concatenate([np.tile(np.asarray(context, dtype=np.int64), (len(options_mk), 1)), options_mk], 1)
        score_m = np.zeros(len(options_mk))
        for end in range(len(context) + 1, rows_mt.shape[1] + 1):
            score_m += self._next_log_scores(rows_mt[:, max(0, end - self.order) : end])
        return [float(score) for score in score_m]

    def _next_log_scores(self, rows_mn: Codes) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Log score (m,) of the last token of each row behind the ones before it."""
        score_m = np.log(np.maximum(self.counts(rows_mn[:, -1:]), 0.5) / self.total)
        for length in range(2, rows_mn.shape[1] + 1):
            together_m, before_m = self.counts(rows_mn[:, -length:]), self.counts(rows_mn[:, -length:-1])
            longer_m = np.log(np.maximum(together_m, 1) / np.maximum(before_m, 1))
            score_m = np.where(together_m > 0, longer_m, score_m + math.log(_BACK_OFF))
        return score_m

    def _codes(self, ngrams_mn: Codes) -> tuple[Codes, np.ndarray[Any, np.dtype[np.bool_]]]:
        """The code (m,) of each n-gram, 0 where it does not come, and whether it does."""
        code_m, known_m = np.zeros(len(ngrams_mn), dtype=np.int64), np.ones(len(ngrams_mn), dtype=bool)
        for place in range(ngrams_mn.shape[1]):
            (keys, _), token_m = self._levels[place], ngrams_mn[:, place]
            known_m &= (token_m >= 0) & (token_m < self.base) & (len(keys) > 0)
            if not known_m.any():
                return np.zeros_like(code_m), known_m
            wanted_m = np.where(known_m, code_m * self.base + token_m, 0)
            code_m = np.searchsorted(keys, wanted_m).clip(max=len(keys) - 1)
            known_m &= keys[code_m] == wanted_m
        return np.where(known_m, code_m, 0), known_m
