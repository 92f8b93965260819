"""How probable a model finds given tokens: the one place where log-probabilities are taken."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.evaluating import evaluating
from geomcallbacks.reading.device import device_of

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
        length_b = torch.tensor([len(ids) for ids, _ in batch])
        ids_bt = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True)
        mask_bt = (torch.arange(ids_bt.shape[1]) < length_b[:, None]).long()
        columns = torch.tensor([(row, *target) for row, (_, targets) in enumerate(batch) for target in targets]).T
        yield TargetBatch(ids_bt, mask_bt, *columns.contiguous())


def logits_of(language_model: Any, batch: TargetBatch) -> Tensor:
    """The model's logits (m, v), where it predicts each target of a batch."""
    device, length = device_of(language_model), batch.input_ids_bt.shape[1]
    first = int(batch.position_m.min())  # those before it are not needed
    settings: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(language_model).forward).parameters:
        settings["logits_to_keep"] = length - first
    ids_bt, mask_bt = batch.input_ids_bt.to(device), batch.mask_bt.to(device)
    logits_btv: Tensor = language_model(input_ids=ids_bt, attention_mask=mask_bt, **settings).logits
    return logits_btv[:, first - length :][batch.row_m, batch.position_m - first]


def logprobs_of(logits_mv: Tensor, target_m: Tensor) -> Tensor:
    """Log-probability (m,) of each target in nats: on the CPU, float64 of a float32 log-softmax."""
    logprob_mv = torch.log_softmax(logits_mv.float(), dim=-1)
    return logprob_mv.gather(1, target_m[:, None].to(logprob_mv.device))[:, 0].cpu().double()


def summed_logprobs(model: nn.Module, batches: Iterable[TargetBatch], sums: int) -> Tensor:
    """Log-probabilities of all targets, summed (s,) as `TargetBatch.sum_m` says.

    Args:
        model: a causal language model of Transformers, wrapped or not. It is evaluated without dropout and left as it
            was.
        batches: what goes through it.
        sums: how many sums there are.

    Returns:
        (s,) float64 on the CPU, in nats.
    """
    total_s = torch.zeros(sums, dtype=torch.float64)
    with evaluating(model) as language_model:
        for batch in batches:
            logprob_m = logprobs_of(logits_of(language_model, batch), batch.target_m)
            total_s += torch.zeros_like(total_s).index_add_(0, batch.sum_m, logprob_m)
    return total_s
