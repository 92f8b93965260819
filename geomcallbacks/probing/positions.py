"""Positions: which tokens of a probe's rows give a feature. The reader picks their hidden states (`pick_positions`).

`"last"` takes the last real token of a row, a number k the positions ⌈L·j/k⌉ − 1, j = 1 … k, of its L real tokens,
`"all"` every real token but the first, `"mean"` their mean. Position 0, an attention sink, is never taken.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

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
        row = torch.arange(len(lengths_b)).repeat_interleave(lengths_b - 1)
        return row, torch.cat([torch.arange(1, int(length)) for length in lengths_b])
    k = positions if isinstance(positions, int) else 1
    j = torch.arange(1, k + 1)
    place_bk = (lengths_b[:, None] * j + k - 1) // k - 1  # ⌈L·j/k⌉ − 1
    return torch.arange(len(lengths_b)).repeat_interleave(k), place_bk.flatten()
