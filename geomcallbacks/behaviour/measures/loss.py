"""How probable a model finds given completions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_positive, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.logprobs import summed_logprobs, target_batches, targets_of
from geomcallbacks.behaviour.rows.completions import Completions


def completion_logprobs(model: nn.Module, rows: Completions, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion given its prompt.

    Args:
        model: a causal language model of Transformers, wrapped or not. It is evaluated without dropout and left as it
            was.
        rows: the completions.
        batch_size: rows that go through the model together, sorted by length and padded on the right.

    Returns:
        On the CPU: the float64 sum (n,) of float32 log-softmax values, in nats, and the completion's tokens (n,).

    Raises:
        ValueError: rows and model do not fit, or `batch_size` is not positive.
    """
    return logprobs_part(model, rows, batch_size), tokens_of(rows)


def logprobs_part(model: nn.Module, rows: Completions, batch_size: int, index: int = 0, count: int = 1) -> Tensor:
    """The first that `completion_logprobs` returns, for one share of the batches; zero for the other rows."""
    check_positive(batch_size=batch_size)
    check_tokens(model, "completions", rows.max_token_id, rows.max_tokens)
    pairs = enumerate(zip(rows.prompt_ids, rows.completion_ids, strict=True))
    whole = [(prompt + completion, targets_of(prompt, completion, row)) for row, (prompt, completion) in pairs]
    return summed_logprobs(model, target_batches(whole, batch_size), len(rows), index, count)


def tokens_of(rows: Completions) -> Tensor:
    """How many tokens each completion has, (n,)."""
    return torch.tensor([len(completion) for completion in rows.completion_ids], dtype=torch.int64, device="cpu")


class CompletionLoss(Dealt):
    """Loss on fixed completions: nats per completion token, Σ over rows of −ln p / Σ of tokens.

    Args:
        rows: the completions.
        batch_size: rows that go through the model together.

    Attributes:
        fingerprint: names what is measured on.

    Raises:
        TypeError, ValueError: an argument is wrong by itself.
    """

    def __init__(self, rows: Completions, batch_size: int = 32) -> None:
        check_type("rows", rows, Completions)
        check_positive(batch_size=batch_size)
        self.rows, self.batch_size, self.fingerprint = rows, batch_size, rows.fingerprint

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the rows do not fit the model."""
        check_tokens(model, "completions", self.rows.max_token_id, self.rows.max_tokens)

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Log-probability (n,) of each completion. See `completion_logprobs` for what is raised."""
        return logprobs_part(model, self.rows, self.batch_size, index, count)

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """`loss` in nats per completion token."""
        return {"loss": float(-whole_s.sum() / tokens_of(self.rows).sum())}
