"""How probable a model finds given tokens: the one place where log-probabilities are taken."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.evaluating import evaluating
from geomcallbacks.reading.device import device_of

_LOGGER = logging.getLogger("geomcallbacks")
#: Logits whose logarithm is taken together: 256 MiB of float32.
_TOGETHER = 2**26

#: A token whose probability is asked for: the position that predicts it, its id, and the sum that it is counted in.
Target = tuple[int, int, int]


@dataclass(frozen=True)
class TargetBatch:
    """Token rows that go through a model together, and the tokens whose probability is asked for. All on the CPU.

    Attributes:
        input_ids_bt: (b, t) the rows, right-padded with 0.
        mask_bt: (b, t) 1 for real tokens, 0 for padding.
        row_m: (m,) of each target: its row in the batch,
        position_m: (m,) the position that predicts it,
        target_m: (m,) its id,
        sum_m: (m,) and the sum that it is counted in.
    """

    input_ids_bt: Tensor
    mask_bt: Tensor
    row_m: Tensor
    position_m: Tensor
    target_m: Tensor
    sum_m: Tensor


def targets_of(prompt: Sequence[int], completion: Sequence[int], number: int) -> list[Target]:
    """Every token of a completion, where it stands behind its prompt, counted in the sum of that number."""
    return [(len(prompt) - 1 + place, token, number) for place, token in enumerate(completion)]


def target_batches(rows: Iterable[tuple[Sequence[int], list[Target]]], batch_size: int) -> Iterator[TargetBatch]:
    """Rows of token ids with their targets, rows of like length together, the shortest first."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        length_b = torch.tensor([len(ids) for ids, _ in batch], device="cpu")
        ids_bt = nn.utils.rnn.pad_sequence([torch.tensor(ids, device="cpu") for ids, _ in batch], batch_first=True)
        mask_bt = (torch.arange(ids_bt.shape[1], device="cpu") < length_b[:, None]).long()
        listed = [(row, *target) for row, (_, targets) in enumerate(batch) for target in targets]
        columns = torch.tensor(listed, device="cpu").T
        yield TargetBatch(ids_bt, mask_bt, *columns.contiguous())


def logits_of(language_model: Any, batch: TargetBatch) -> Tensor:
    """The model's logits (m, v), where it predicts each target of a batch."""
    logits_btv, first = _logits_from(language_model, batch)
    return logits_btv[batch.row_m, batch.position_m - first]


def _logits_from(language_model: Any, batch: TargetBatch) -> tuple[Tensor, int]:
    """The model's logits (b, t, v) from the first position on that predicts a target, and that position."""
    device, length = device_of(language_model), batch.input_ids_bt.shape[1]
    first = int(batch.position_m.min())  # those before it are not needed
    settings: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(language_model).forward).parameters:
        settings["logits_to_keep"] = length - first
    ids_bt, mask_bt = batch.input_ids_bt.to(device), batch.mask_bt.to(device)
    logits_btv: Tensor = language_model(input_ids=ids_bt, attention_mask=mask_bt, **settings).logits
    return logits_btv[:, first - length :], first


def logprobs_of(logits_mv: Tensor, target_m: Tensor) -> Tensor:
    """Log-probability (m,) of each target in nats: on the CPU, float64 of a float32 log-softmax."""
    logprob_mv = torch.log_softmax(logits_mv.float(), dim=-1)
    return logprob_mv.gather(1, target_m[:, None].to(logprob_mv.device))[:, 0].cpu().double()


def summed_logprobs(
    model: nn.Module, batches: Iterable[TargetBatch], sums: int, index: int = 0, count: int = 1
) -> Tensor:
    """Log-probabilities of all targets, summed (s,) as `TargetBatch.sum_m` says.

    Args:
        model: a causal language model of Transformers, wrapped or not. It is evaluated without dropout and left as it
            was.
        batches: what goes through it.
        sums: how many sums there are.
        index: which share of the batches is taken, from 0.
        count: how many shares there are.

    Returns:
        (s,) float64 on the CPU, in nats. Zero where other shares have the targets.
    """
    share = list(batches)[index::count]
    found: list[tuple[Tensor, Tensor]] = []
    with evaluating(model) as language_model:
        for batch in reversed(share):  # the longest first: where memory runs out, it does so at once
            found.append((batch.sum_m, _logprobs(language_model, batch)))
    total_s = torch.zeros(sums, dtype=torch.float64, device="cpu")
    for sum_m, logprob_m in reversed(found):
        total_s += torch.zeros_like(total_s).index_add_(0, sum_m, logprob_m)
    return total_s


def _logprobs(language_model: Any, batch: TargetBatch) -> Tensor:
    """Log-probability (m,) of each target of a batch, in two halves where memory runs out."""
    rows = len(batch.input_ids_bt)
    try:
        logits_btv, first = _logits_from(language_model, batch)
        step = max(1, _TOGETHER // logits_btv.shape[-1])
        parts = []
        for start in range(0, len(batch.target_m), step):
            row_k, position_k = batch.row_m[start : start + step], batch.position_m[start : start + step]
            parts.append(logprobs_of(logits_btv[row_k, position_k - first], batch.target_m[start : start + step]))
        return torch.cat(parts)
    except torch.OutOfMemoryError:
        if rows == 1:
            raise
    _LOGGER.warning("out of memory: %d rows of %d tokens are measured in halves", rows, batch.input_ids_bt.shape[1])
    logprob_m = torch.zeros(len(batch.target_m), dtype=torch.float64, device="cpu")
    for start, end in ((0, rows // 2), (rows // 2, rows)):
        taken_m = (batch.row_m >= start) & (batch.row_m < end)
        columns = (batch.position_m[taken_m], batch.target_m[taken_m], batch.sum_m[taken_m])
        ids_bt, mask_bt = batch.input_ids_bt[start:end], batch.mask_bt[start:end]
        part = TargetBatch(ids_bt, mask_bt, batch.row_m[taken_m] - start, *columns)
        if bool(taken_m.any()):
            logprob_m[taken_m] = _logprobs(language_model, part)
    return logprob_m
