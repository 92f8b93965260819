"""How far a model ranks held-out answers as an ∞-gram model of the training text does.

As in Li et al. 2025 (arXiv 2509.23024): Spearman's ρ, across answers, between the model's log-likelihood of an answer
and that of an ∞-gram model, which knows nothing but how often n-grams stand in the training text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_equal_lengths, check_positive, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.infinigram.scores import NgramScores
from geomcallbacks.behaviour.measures.loss import logprobs_part
from geomcallbacks.behaviour.rows.completions import Completions
from geomcallbacks.behaviour.rows.token_ids import check_unchanged
from geomcallbacks.running.files import replace_file
from geomcallbacks.statistics import spearman, spearman_interval

_FORMAT = "geomcallbacks.memorisation.v1"


class Memorisation(Dealt):
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
        check_type("rows", rows, Completions)
        check_positive(batch_size=batch_size)
        check_equal_lengths(rows=rows, scores=scores.probabilities)
        self.ngram_n = scores.log_likelihood(zeros)
        self.rows, self.scores, self.zeros, self.batch_size = rows, scores, zeros, batch_size
        kept = np.flatnonzero(~np.isnan(self.ngram_n))
        if len(kept) < 4:
            known = f"only {len(kept)} of {len(rows)} answers have an ∞-gram likelihood"
            raise ValueError(f"zeros={zeros!r}: {known}; give more rows, shorter answers, or text closer to training's")
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

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Log-probability of each answer that is kept. See `completion_logprobs` for what is raised."""
        return logprobs_part(model, self._kept, self.batch_size, index, count)

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """`rho`, `n`, `low` and `high`."""
        rho = spearman(whole_s.numpy(), self.ngram_n[~np.isnan(self.ngram_n)])
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
        header = {"format": _FORMAT, "zeros": self.zeros, "source": self.scores.source, "fingerprint": self.fingerprint}
        replace_file(path, save(tensors, header))

    @classmethod
    def load(cls, path: str | Path, *, batch_size: int = 32) -> Memorisation:
        """Read what `save` wrote.

        Args:
            path: the file.
            batch_size: rows that go through the model together.

        Raises:
            ValueError: the file is none of these, or was changed after it was saved.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ValueError(f"{path} is not a saved Memorisation: its format reads {header.get('format')!r}")
                prompts, completions = _rows(file, "prompt"), _rows(file, "completion")
                probabilities, suffixes = _rows(file, "probability"), _rows(file, "suffix")
        except SafetensorError as error:
            raise ValueError(f"{path} is not a saved Memorisation, or was torn: {error}") from error
        scores = NgramScores(probabilities, suffixes, header["source"])
        loaded = cls(Completions(prompts, completions), scores, zeros=header["zeros"], batch_size=batch_size)
        check_unchanged(path, loaded.fingerprint, header["fingerprint"])
        return loaded


def _flat(name: str, rows: Sequence[Sequence[float]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of differing length as one tensor and their lengths."""
    values = torch.tensor([value for row in rows for value in row], dtype=dtype, device="cpu")
    return {name: values, f"{name}_lengths": torch.tensor([len(row) for row in rows], dtype=torch.int64, device="cpu")}


def _rows(file: Any, name: str) -> list[list[Any]]:
    """The rows that `_flat` stored."""
    lengths = file.get_tensor(f"{name}_lengths").tolist()
    return [row.tolist() for row in file.get_tensor(name).split(lengths)]
