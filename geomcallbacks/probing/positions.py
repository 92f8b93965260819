"""Positions: which tokens of a probe's rows give a feature.

`"last"` takes the last real token of a row, a number k the positions ⌈L·j/k⌉ − 1, j = 1 … k, of its L real tokens,
`"all"` every real token but the first, `"mean"` their mean. Position 0, an attention sink, is never taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

Positions = str | int


def check_positions(positions: Positions, lengths_n: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless `positions` is known and every row is long enough for it."""
    if isinstance(positions, bool) or not (
        positions in ("last", "all", "mean") or (isinstance(positions, int) and positions >= 1)
    ):
        raise ValueError(f"positions={positions!r} is unknown: give 'last', 'all', 'mean' or a positive number")
    if isinstance(positions, int) and lengths_n is not None and int(lengths_n.min()) < positions + 1:
        raise ValueError(
            f"positions={positions} needs rows of at least {positions + 1} tokens, and the probe has one of"
            f" {int(lengths_n.min())}: take fewer positions or build the probe with min_length={positions + 1}"
        )


def position_count(lengths_n: Tensor, positions: Positions) -> Tensor:
    """How many features each row of so many real tokens gives, (n,)."""
    if positions == "all":
        return lengths_n - 1
    return torch.full_like(lengths_n, positions if isinstance(positions, int) else 1)


def position_index(lengths_b: Tensor, k: int) -> Tensor:
    """(b, k) 0-based positions ⌈L·j/k⌉ − 1, j = 1 … k, of rows of L real tokens; the last of them is the last token."""
    j = torch.arange(1, k + 1)
    return (lengths_b[:, None] * j + k - 1) // k - 1


def picked(lengths_b: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Row and position (m,) of each feature of a batch whose rows have so many real tokens, row after row.

    Not for ``"mean"``, whose feature stands at no position.
    """
    if positions == "all":
        row = torch.arange(len(lengths_b)).repeat_interleave(lengths_b - 1)
        position = torch.cat([torch.arange(1, int(length)) for length in lengths_b])
        return row, position
    index_bk = position_index(lengths_b, positions if isinstance(positions, int) else 1)
    return torch.arange(len(index_bk)).repeat_interleave(index_bk.shape[1]), index_bk.flatten()
