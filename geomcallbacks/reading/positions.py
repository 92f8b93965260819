"""Positions: which tokens of a probe's rows give a feature, and how their hidden states are picked.

`"last"` takes the last real token of a row, a number k the positions ⌈L·j/k⌉ − 1, j = 1 … k, of its L real tokens,
`"all"` every real token but the first, `"mean"` their mean. Position 0, an attention sink, is never taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from geomcallbacks.probe import ProbeBatch
from geomcallbacks.reading.device import send

Positions = Literal["last", "all", "mean"] | int


def check_positions(positions: Positions, lengths_n: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless `positions` is known and every row is long enough for it."""
    numbered = isinstance(positions, int) and not isinstance(positions, bool) and positions >= 1
    if not numbered and positions not in ("last", "all", "mean"):
        raise ValueError(f"positions={positions!r} is unknown: give 'last', 'all', 'mean' or a positive number")
    if isinstance(positions, int) and lengths_n is not None and int(lengths_n.min()) <= positions:
        rows = f"rows of at least {positions + 1} tokens, not one of {int(lengths_n.min())}"
        raise ValueError(f"positions={positions} needs {rows}: build the probe with min_length={positions + 1}")


def position_count(lengths_n: Tensor, positions: Positions) -> Tensor:
    """Return how many features each row of so many real tokens gives, (n,)."""
    if positions == "all":
        return lengths_n - 1
    return torch.full_like(lengths_n, positions if isinstance(positions, int) else 1)


def feature_places(lengths_b: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Return the row (m,) and the 0-based position (m,) of each feature of a batch, row after row.

    Args:
        lengths_b: (b,) real tokens of each row.
        positions: any but "mean", whose feature stands at no position.
    """
    if positions == "all":
        row = torch.arange(len(lengths_b), device="cpu").repeat_interleave(lengths_b - 1)
        return row, torch.cat([torch.arange(1, int(length), device="cpu") for length in lengths_b])
    k = positions if isinstance(positions, int) else 1
    j = torch.arange(1, k + 1, device="cpu")
    place_bk = (lengths_b[:, None] * j + k - 1) // k - 1  # ⌈L·j/k⌉ − 1
    return torch.arange(len(lengths_b), device="cpu").repeat_interleave(k), place_bk.flatten()


def pick_positions(batch: ProbeBatch, positions: Positions, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from hidden states (b, t, d) to the features (m, d): the states of the wanted positions."""
    if positions == "mean":
        taken_bt1 = batch.mask_bt.bool()[..., None]
        taken_bt1[:, 0] = False
        taken_bt1 = send(taken_bt1, device)

        def mean(hidden_btd: Tensor) -> Tensor:
            # A masked sum, not a product with weights: autocast would round that, and 0 · inf in a padding is NaN.
            wide_btd = hidden_btd.to(torch.promote_types(hidden_btd.dtype, torch.float32))
            kept_bt1 = taken_bt1.to(hidden_btd.device)  # a layer may lie on another device than the first
            return wide_btd.masked_fill(~kept_bt1, 0.0).sum(1) / kept_bt1.sum(1)

        return mean
    row_m, position_m = (send(part, device) for part in feature_places(batch.lengths_b, positions))
    return lambda hidden_btd: hidden_btd[row_m.to(hidden_btd.device), position_m.to(hidden_btd.device)]


def states_in(value: Any) -> Tensor | None:
    """Return the tensor that holds hidden states in what passes a module, whole where it is a DTensor; None: none."""
    hidden = getattr(value, "last_hidden_state", value)
    hidden = hidden[0] if isinstance(hidden, (tuple, list)) and hidden else hidden
    if not isinstance(hidden, Tensor):
        return None
    if hasattr(hidden, "full_tensor"):  # tensor parallelism may leave states in parts
        hidden = hidden.full_tensor()
    return hidden.detach()  # type: ignore[no-any-return]
