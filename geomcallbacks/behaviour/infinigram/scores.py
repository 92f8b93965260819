"""What an ∞-gram model says of fixed answers, asked once and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geomcallbacks.behaviour.arguments import check_positive, check_type
from geomcallbacks.behaviour.rows.completions import Completions


class InfiniGram(Protocol):
    """What can tell the ∞-gram probability of each token of an answer.

    Attributes:
        source: which text and index it counts in.
    """

    source: str

    def probabilities(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """Probability of each token of the answer, and how many tokens before it were found in the text."""


@dataclass(frozen=True)
class NgramScores:
    """What an ∞-gram model says of each answer. Make it with `ngram_scores`.

    Attributes:
        probabilities: of each answer's tokens.
        suffix_lengths: for each of them, how many tokens before it were found in the text.
        source: the text and index that were counted in.
    """

    probabilities: list[list[float]]
    suffix_lengths: list[list[int]]
    source: str

    def log_likelihood(self, zeros: str = "replace") -> NDArray[np.float64]:
        """Log-likelihood (n,) of each answer in nats, NaN where it has none.

        Args:
            zeros: what is done with a token of probability zero; see `Memorisation`.

        Raises:
            ValueError: `zeros` is unknown.
        """
        if zeros not in ("replace", "drop"):
            raise ValueError(f"zeros={zeros!r} is unknown: give 'replace' or 'drop'")
        found = []
        for row in self.probabilities:
            known = [p for p in row if p > 0]
            has_none = not known or (zeros == "drop" and len(known) < len(row))
            # Rounded, so that products that are equal, such as 1/2 · 1/3 and 1/6, share a rank.
            found.append(math.nan if has_none else round(math.fsum(map(math.log, known)), 9))
        return np.array(found)

    @property
    def zero_share(self) -> float:
        """Share of the answers' tokens whose ∞-gram probability is zero."""
        tokens = [p for row in self.probabilities for p in row]
        return sum(p <= 0 for p in tokens) / len(tokens)


def ngram_scores(engine: InfiniGram, rows: Completions, *, backoff: bool = False, workers: int = 1) -> NgramScores:
    """What an ∞-gram model says of each row's completion, its prompt given.

    Args:
        engine: an index, or the API.
        rows: prompts and answers in the tokens of the engine's text.
        backoff: where a token never follows the longest known end of its context, take the longest end that it does
            follow, without a discount: then only a token that the text does not have is left with zero. Not in the
            paper; of use where the text is small and zeros are many.
        workers: threads that ask at the same time; more than one helps with the API.

    Raises:
        ValueError: `workers` is not positive, or the engine refuses the rows.
        ConnectionError: the API cannot be reached.
    """
    check_type("rows", rows, Completions)
    check_positive(workers=workers)

    def ask(prompt: list[int], answer: list[int]) -> tuple[list[float], list[int]]:
        found, lengths = engine.probabilities(prompt, answer)
        for place, token in enumerate(answer if backoff else []):
            context = [*prompt, *answer[:place]]
            while found[place] <= 0 and lengths[place] > 0:
                shorter = context[len(context) - lengths[place] + 1 :]
                [found[place]], [lengths[place]] = engine.probabilities(shorter, [token])
        return found, lengths

    with ThreadPoolExecutor(workers) as pool:
        probabilities, lengths = zip(*pool.map(ask, rows.prompt_ids, rows.completion_ids), strict=True)
    return NgramScores(list(probabilities), list(lengths), engine.source + (", backed off" if backoff else ""))
