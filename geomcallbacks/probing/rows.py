"""Rows of token ids: lists and padded tensors as left-aligned rows, and what is refused as a probe."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_LARGEST = 2**31 - 1  # what a saved probe holds


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return rows of differing length as one tensor (n, t), padded with 0 behind, and their lengths (n,)."""
    tensors = []
    for number, row in enumerate(rows):
        try:
            tensors.append(torch.tensor([operator.index(token) for token in row], dtype=torch.int64, device="cpu"))
        except (TypeError, ValueError, RuntimeError) as error:  # a ValueError beyond 64 bits
            raise ValueError(f"row {number} of ids_nt holds no token ids: give integers ({error})") from error
    if not tensors:
        return _empty(0, 0), _empty(0)
    return pad_sequence(tensors, batch_first=True), torch.tensor([len(row) for row in tensors], device="cpu")


def left_aligned(ids_nt: Tensor, mask_nt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rows (n, t) with their real tokens at the left, and lengths (n,). See `ProbeSet.from_token_ids`."""
    if ids_nt.ndim != 2 or ids_nt.is_floating_point() or ids_nt.is_complex():
        raise ValueError(f"ids_nt of shape {tuple(ids_nt.shape)} is {ids_nt.dtype}: give token rows (n, t) of integers")
    ids_nt = ids_nt.to("cpu", torch.int64)
    if mask_nt is None or ids_nt.numel() == 0:
        return ids_nt, torch.full((len(ids_nt),), ids_nt.shape[1], device="cpu")
    mask_nt = torch.as_tensor(mask_nt, device="cpu") != 0
    if mask_nt.shape != ids_nt.shape:
        raise ValueError(f"mask_nt has shape {tuple(mask_nt.shape)}, ids_nt {tuple(ids_nt.shape)}: they must be equal")
    holed_n = (mask_nt[:, 1:] & ~mask_nt[:, :-1]).sum(1) + mask_nt[:, 0] > 1  # more than one run of real tokens
    if holed_n.any():
        row = int(holed_n.int().argmax())
        raise ValueError(f"mask_nt has a hole in row {row}: real tokens must stand together, padding on either side")
    real_first_nt = (~mask_nt).int().argsort(dim=1, stable=True)
    ids_nt = ids_nt * mask_nt  # what stands in the padding, -100 say, is no token
    return ids_nt.gather(1, real_first_nt), mask_nt.sum(1)


def check_rows(input_ids_nt: Tensor, lengths_n: Tensor) -> None:
    """Raise ``ValueError`` for rows (n, t) and lengths (n,) that make no probe."""
    if len(input_ids_nt) == 0:
        raise ValueError("the probe is empty: give at least one row of token ids")
    shortest, longest = (int(length) for length in lengths_n.aminmax())
    if shortest < 2:
        row = int(lengths_n.argmin())
        raise ValueError(f"row {row} has {shortest} token(s): drop it, since position 0 is never measured")
    if longest > input_ids_nt.shape[1]:
        raise ValueError(f"row {int(lengths_n.argmax())} of {input_ids_nt.shape[1]} ids cannot have {longest} tokens")
    smallest, largest = (int(token) for token in input_ids_nt.aminmax())
    if largest > _LARGEST:
        raise ValueError(f"token id {largest} is above {_LARGEST}, which no vocabulary reaches")
    if smallest < 0:
        raise ValueError(f"token id {smallest} is negative: mark padding in mask_nt instead of writing it into ids_nt")


def _empty(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device="cpu")
