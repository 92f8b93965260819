"""How probable a model finds given completions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.completions import Completions
from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.reading.device import device_of


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
    check_batch_size(batch_size)
    tokens_n = torch.tensor([len(row) for row in rows.completion_ids])
    lengths = [len(p) + len(c) for p, c in zip(rows.prompt_ids, rows.completion_ids, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: (lengths[index], index))
    logprob_n = torch.zeros(len(rows), dtype=torch.float64)
    check_tokens(model, "completions", rows.max_token_id, rows.max_tokens)
    with evaluating(model) as language_model:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            logprob_n[batch] = _batch_logprobs(language_model, rows, batch).cpu()
    return logprob_n, tokens_n


class CompletionLoss:
    """Loss on fixed completions: nats per completion token, Σ over rows of −ln p / Σ of tokens.

    Args:
        rows: the completions.
        batch_size: rows that go through the model together.

    Raises:
        TypeError, ValueError: an argument is wrong by itself.
    """

    def __init__(self, rows: Completions, batch_size: int = 32) -> None:
        check_rows("rows", rows)
        check_batch_size(batch_size)
        self.rows, self.batch_size = rows, batch_size

    @property
    def fingerprint(self) -> str:
        """Names what is measured on."""
        return self.rows.fingerprint

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the rows do not fit the model."""
        check_tokens(model, "completions", self.rows.max_token_id, self.rows.max_tokens)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`loss` in nats per completion token. See `completion_logprobs` for what is raised."""
        logprob_n, tokens_n = completion_logprobs(model, self.rows, self.batch_size)
        return {"loss": float(-logprob_n.sum() / tokens_n.sum())}


def check_rows(name: str, rows: Any) -> None:
    """Raise ``TypeError`` unless these are Completions."""
    if not isinstance(rows, Completions):
        raise TypeError(f"{name} is a {type(rows).__name__}: build it with Completions.from_texts")


def check_batch_size(batch_size: int) -> None:
    """Raise ``ValueError`` unless it is a positive whole number."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give a positive number of rows")


def _batch_logprobs(language_model: Any, rows: Completions, batch: list[int]) -> Tensor:
    """Summed log-probabilities (b,) of these rows, float64."""
    device = device_of(language_model)
    prompt_b = torch.tensor([len(rows.prompt_ids[index]) for index in batch])
    length_b = prompt_b + torch.tensor([len(rows.completion_ids[index]) for index in batch])
    ids_bt = torch.zeros((len(batch), int(length_b.max())), dtype=torch.int64)
    for place, index in enumerate(batch):
        ids_bt[place, : int(length_b[place])] = torch.tensor(rows.prompt_ids[index] + rows.completion_ids[index])
    position_t = torch.arange(ids_bt.shape[1])
    # The logits at t predict the token at t + 1: those before the first completion are not needed.
    first = int(prompt_b.min()) - 1
    wanted_bt = (position_t >= prompt_b[:, None]) & (position_t < length_b[:, None])
    wanted_bt = wanted_bt[:, first + 1 :].to(device)
    mask_bt = (position_t < length_b[:, None]).long()
    settings: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(language_model).forward).parameters:
        settings["logits_to_keep"] = ids_bt.shape[1] - first
    ids_bt = ids_bt.to(device)
    logits_btv = language_model(input_ids=ids_bt, attention_mask=mask_bt.to(device), **settings).logits
    logits_btv = logits_btv[:, -(ids_bt.shape[1] - first) : -1]
    logprob_mv = torch.log_softmax(logits_btv[wanted_bt].float(), dim=-1)
    target_m = ids_bt[:, first + 1 :][wanted_bt]
    logprob_m = logprob_mv.gather(1, target_m[:, None])[:, 0].double()
    row_m = wanted_bt.nonzero()[:, 0]
    return torch.zeros(len(batch), dtype=torch.float64, device=device).index_add_(0, row_m, logprob_m)
