"""Rows of token ids: what is refused as a probe, and padded rows moved to the left."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST = 2**31 - 1  # what a saved probe holds


def row_of(number: int, row: Sequence[int]) -> Tensor:
    """A row (t,) of token ids, from the sequence that was given at that place."""
    try:
        return torch.tensor([operator.index(token) for token in row], dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:  # a ValueError beyond 64 bits
        raise ValueError(f"row {number} of ids_nt holds no token ids: give integers ({error})") from error


def check_rows(input_ids_nt: Tensor, lengths_n: Tensor) -> None:
    """Raise ``ValueError`` for rows (n, t) and lengths (n,) that make no probe."""
    if input_ids_nt.ndim != 2 or lengths_n.shape != input_ids_nt.shape[:1]:
        raise ValueError(
            f"token rows of shape {tuple(input_ids_nt.shape)} and lengths of shape {tuple(lengths_n.shape)} do not go"
            " together: give (n, t) and (n,)"
        )
    for what, values in (("token rows", input_ids_nt), ("lengths", lengths_n)):
        if values.is_floating_point() or values.is_complex():
            raise ValueError(f"{what} of dtype {values.dtype} are no whole numbers: give integers")
    if len(input_ids_nt) == 0:
        raise ValueError("the probe is empty: give at least one row of token ids")
    shortest = int(lengths_n.min())
    if shortest < 2:
        raise ValueError(
            f"row {int(lengths_n.argmin())} has {shortest} token(s): a probe's rows need at least two, because position"
            " 0 is never measured; drop the short rows"
        )
    if int(lengths_n.max()) > input_ids_nt.shape[1]:
        raise ValueError(
            f"row {int(lengths_n.argmax())} is said to have {int(lengths_n.max())} tokens, and rows are"
            f" {input_ids_nt.shape[1]} wide"
        )
    if int(input_ids_nt.max()) > _LARGEST:
        raise ValueError(f"token id {int(input_ids_nt.max())} is above {_LARGEST}, which no vocabulary reaches")
    if int(input_ids_nt.min()) < 0:
        raise ValueError(
            f"token id {int(input_ids_nt.min())} is negative: mark padding in mask_nt instead of writing it into ids_nt"
        )


def left_aligned(ids_nt: Tensor, mask_nt: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (n, t) with their real tokens at the left, and how many each has (n,). See `ProbeSet.from_token_ids`."""
    if not isinstance(mask_nt, Tensor):
        raise ValueError(f"mask_nt is a {type(mask_nt).__name__}: give a tensor (n, t), as ids_nt is one")
    mask_nt = mask_nt.to("cpu") != 0
    if mask_nt.shape != ids_nt.shape:
        raise ValueError(f"mask_nt has shape {tuple(mask_nt.shape)}, ids_nt {tuple(ids_nt.shape)}: they must be equal")
    if ids_nt.numel() == 0:
        raise ValueError("the probe is empty: give at least one row of token ids")
    lengths_n = mask_nt.sum(1)
    start_n = mask_nt.int().argmax(1)
    position_nt = torch.arange(ids_nt.shape[1]).expand_as(ids_nt)
    solid_nt = (position_nt >= start_n[:, None]) & (position_nt < (start_n + lengths_n)[:, None])
    if not torch.equal(solid_nt, mask_nt):
        row = int((solid_nt != mask_nt).any(1).int().argmax())
        raise ValueError(f"mask_nt has a hole in row {row}: real tokens must stand together, padding on either side")
    ids_nt = torch.where(mask_nt, ids_nt, 0)  # whatever stood in the padding, -100 say, is no token
    source_nt = (position_nt + start_n[:, None]).clamp_max(ids_nt.shape[1] - 1)
    return ids_nt.gather(1, source_nt), lengths_n
