"""Batches of a probe's rows, and which process reads which of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProbeBatch:
    """Rows that go through the model together.

    Attributes:
        rows_b: (b,) numbers of the probe's rows.
        input_ids_bt: (b, t) tokens, right-padded with 0.
        lengths_b: (b,) real tokens of each row.
    """

    rows_b: Tensor
    input_ids_bt: Tensor
    lengths_b: Tensor

    @cached_property
    def mask_bt(self) -> Tensor:
        """(b, t) 1 for real tokens, 0 for padding."""
        return (torch.arange(self.input_ids_bt.shape[1]) < self.lengths_b[:, None]).long()

    @cached_property
    def padded(self) -> bool:
        """Whether any row is shorter than the batch is wide."""
        return int(self.lengths_b.min()) < self.input_ids_bt.shape[1]


def deal(batches: list[ProbeBatch], rank: int, world_size: int) -> list[tuple[ProbeBatch, bool]]:
    """Return the share of one process: whole batches, the same number for each process.

    Where the batches do not divide evenly, the processes that would go short get the first batch once more, marked
    ``False``: they run it so that no process waits for another, and do not count it.
    """
    share = [(batch, True) for batch in batches[rank::world_size]]
    rounds = -(-len(batches) // world_size)
    return share + [(batches[0], False)] * (rounds - len(share))
