"""How far a model ranks held-out answers as an ∞-gram model of the training text does.

As in Li et al. 2025 (arXiv 2509.23024): Spearman's ρ, across answers, between the model's log-likelihood of an answer
and that of an ∞-gram model, which knows nothing but how often n-grams stand in the training text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geomcallbacks.behaviour.completions import Completions
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.infinigram.index import InfiniGram
from geomcallbacks.behaviour.loss import check_batch_size, check_rows, completion_logprobs
from geomcallbacks.statistics import spearman, spearman_interval

_FORMAT = "geomcallbacks.memorisation.v1"
ZEROS = ("replace", "drop")


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
            zeros: see `Memorisation`.
        """
        _check_zeros(zeros)
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

    def suffix_shares(self, longest: int = 8) -> dict[str, float]:
        """Share of the answers' tokens by how many tokens before them were found: "0", "1", …, and ">longest"."""
        lengths = np.concatenate([np.asarray(row) for row in self.suffix_lengths])
        shares = {str(length): float(np.mean(lengths == length)) for length in range(longest + 1)}
        return shares | {f">{longest}": float(np.mean(lengths > longest))}


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
    check_rows("rows", rows)
    if workers < 1:
        raise ValueError(f"workers={workers}: give a positive number of threads")

    def ask(prompt: list[int], answer: list[int]) -> tuple[list[float], list[int]]:
        found, lengths = engine.probabilities(prompt, answer)
        for place, token in enumerate(answer if backoff else []):
            context = [*prompt, *answer[:place]]
            while found[place] <= 0 and lengths[place] > 0:
                shorter = context[len(context) - lengths[place] + 1 :]
                [found[place]], [lengths[place]] = engine.probabilities(shorter, [token])
        return found, lengths

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(ask, rows.prompt_ids, rows.completion_ids))
    source = engine.source + (", backed off" if backoff else "")
    return NgramScores([probabilities for probabilities, _ in found], [lengths for _, lengths in found], source)


class Memorisation:
    """Spearman's ρ between a model's and an ∞-gram model's log-likelihoods of fixed answers.

    | key | |
    |---|---|
    | `rho` | Spearman's ρ, equal values sharing the mean of their ranks |
    | `n` | answers that have an ∞-gram likelihood |
    | `low`, `high` | 95 % interval over the choice of answers: Fisher's z with Bonett and Wright's variance |

    A token that never follows the longest known end of its context has an ∞-gram probability of zero, and with it the
    whole answer. `zeros` says what then happens:

    - "replace": such a token counts as probability 1, that is, not at all; an answer of nothing else is left out. So
      does the paper. It makes answers that the text does not know look *likely*, which lowers ρ where zeros are many.
    - "drop": an answer with such a token is left out.

    See `ngram_scores` for a third way, `backoff`.

    The ∞-gram side does not change with the model and is given once.

    Args:
        rows: prompts and answers, in the model's tokens.
        scores: of the same answers, in the same order, whatever the tokens.
        zeros: see above.
        batch_size: rows that go through the model together.

    Attributes:
        ngram_n: the ∞-gram model's log-likelihoods (n,) in nats, NaN where an answer is left out.

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or fewer than four answers have a likelihood.
    """

    def __init__(self, rows: Completions, scores: NgramScores, *, zeros: str = "replace", batch_size: int = 32) -> None:
        check_rows("rows", rows)
        check_batch_size(batch_size)
        if len(rows) != len(scores.probabilities):
            raise ValueError(f"{len(rows)} rows and {len(scores.probabilities)} scores: give one of each for every row")
        self.ngram_n = scores.log_likelihood(zeros)
        self.rows, self.scores, self.zeros, self.batch_size = rows, scores, zeros, batch_size
        kept = np.flatnonzero(~np.isnan(self.ngram_n))
        if len(kept) < 4:
            raise ValueError(
                f"only {len(kept)} of {len(rows)} answers have an ∞-gram likelihood with zeros={zeros!r}: give more "
                "rows, shorter answers, or text closer to the training text"
            )
        # The others would go through the model for nothing.
        self._kept = Completions([rows.prompt_ids[i] for i in kept], [rows.completion_ids[i] for i in kept])

    @property
    def fingerprint(self) -> str:
        """Names what is measured on: the rows, their ∞-gram probabilities, and what is done with zeros."""
        digest = hashlib.sha256(f"{_FORMAT} {self.rows.fingerprint} {self.zeros}".encode())
        for row in self.scores.probabilities:  # not their logarithms, whose last digit is the machine's
            digest.update(np.array([len(row), *row], dtype="<f8").tobytes())
        return digest.hexdigest()[:16]

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the rows do not fit the model."""
        check_tokens(model, "answers", self._kept.max_token_id, self._kept.max_tokens)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`rho`, `n`, `low` and `high`. See `completion_logprobs` for what is raised."""
        logprob_n, _ = completion_logprobs(model, self._kept, self.batch_size)
        rho = spearman(logprob_n.numpy(), self.ngram_n[~np.isnan(self.ngram_n)])
        low, high = spearman_interval(rho, len(self._kept))
        return {"rho": rho, "n": float(len(self._kept)), "low": low, "high": high}

    def save(self, path: str | Path) -> None:
        """Write rows and ∞-gram scores to a safetensors file: checkpoints are then scored without the index."""
        tensors = {
            **_flat("prompt", self.rows.prompt_ids, torch.int64),
            **_flat("completion", self.rows.completion_ids, torch.int64),
            **_flat("probability", self.scores.probabilities, torch.float64),
            **_flat("suffix", self.scores.suffix_lengths, torch.int64),
        }
        about = {"format": _FORMAT, "zeros": self.zeros, "source": self.scores.source, "fingerprint": self.fingerprint}
        save_file(tensors, str(path), about)

    @classmethod
    def load(cls, path: str | Path, *, zeros: str | None = None, batch_size: int = 32) -> Memorisation:
        """Read what `save` wrote.

        Args:
            path: the file.
            zeros: in place of what the file was saved with.
            batch_size: rows that go through the model together.

        Raises:
            ValueError: the file is none of these, or was changed after it was saved.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise ValueError(f"{path} is not a saved Memorisation: its format reads {about.get('format')!r}")
                prompts, completions, probabilities, suffixes = (
                    _rows(file, name) for name in ("prompt", "completion", "probability", "suffix")
                )
        except SafetensorError as error:
            raise ValueError(f"{path} is not a saved Memorisation, or was torn: {error}") from error
        scores = NgramScores(probabilities, suffixes, about["source"])
        found = cls(Completions(prompts, completions), scores, zeros=about["zeros"], batch_size=batch_size)
        if found.fingerprint != about["fingerprint"]:
            raise ValueError(
                f"{path} holds rows of fingerprint {found.fingerprint}, but says {about['fingerprint']}: it was changed"
                " after it was saved; build it again"
            )
        if zeros is None or zeros == found.zeros:
            return found
        return cls(found.rows, scores, zeros=zeros, batch_size=batch_size)


def _check_zeros(zeros: str) -> None:
    if zeros not in ZEROS:
        raise ValueError(f"zeros={zeros!r} is not one of {', '.join(map(repr, ZEROS))}")


def _flat(name: str, rows: Sequence[Sequence[float]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of differing length as one tensor and their lengths."""
    values = torch.tensor([value for row in rows for value in row], dtype=dtype)
    return {name: values, f"{name}_lengths": torch.tensor([len(row) for row in rows])}


def _rows(file: Any, name: str) -> list[list[Any]]:
    """What `_flat` made into tensors."""
    lengths = file.get_tensor(f"{name}_lengths").tolist()
    return [row.tolist() for row in file.get_tensor(name).split(lengths)]
