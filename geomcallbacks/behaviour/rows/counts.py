"""How often each token occurs in the training text: counted, kept in a file, and checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomcallbacks.running.files import replace_file


def token_counts(rows: Iterable[Tensor] | Tensor, vocabulary: int) -> Tensor:
    """How often each token id occurs.

    Args:
        rows: integer tensors of token ids of any shape, or one.
        vocabulary: number of ids that are counted, v.

    Returns:
        (v,) int64 on the CPU.

    Raises:
        ValueError: an id is negative or not below `vocabulary`.
    """
    counts = torch.zeros(vocabulary, dtype=torch.int64, device="cpu")
    for row in [rows] if isinstance(rows, Tensor) else rows:
        ids = row.reshape(-1).to("cpu", torch.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            found = f"token ids from {int(ids.min())} to {int(ids.max())}"
            raise ValueError(f"{found} are not in vocabulary={vocabulary}: give the tokenizer's size")
        counts += torch.bincount(ids, minlength=vocabulary)
    return counts


def save_counts(counts: Tensor, path: str | Path) -> None:
    """Write token counts as text: the count of token 0 on the first line, of token 1 on the second, and so on."""
    replace_file(Path(path).expanduser(), "".join(f"{count}\n" for count in checked_counts(counts).tolist()).encode())


def load_counts(path: str | Path) -> Tensor:
    """Read what `save_counts` wrote: (v,) int64.

    Raises:
        ValueError: a line is not a whole number that may be a count, or there is none.
    """
    try:
        values = [int(line) for line in Path(path).expanduser().read_text(encoding="utf-8").split()]
        return checked_counts(torch.tensor(values, dtype=torch.int64, device="cpu"))
    except ValueError as error:
        raise ValueError(f"{path} holds no token counts, one whole number a line: {error}") from error


def checked_counts(counts: Any) -> Tensor:
    """Counts (v,) as int64 on the CPU, or ``ValueError`` where they are none."""
    if not isinstance(counts, Tensor) or counts.ndim != 1 or counts.is_floating_point() or counts.is_complex():
        shown = f"{tuple(counts.shape)}, {counts.dtype}" if isinstance(counts, Tensor) else type(counts).__name__
        raise ValueError(f"counts are {shown}: give a one-dimensional integer tensor, a count for each token id")
    if len(counts) == 0 or int(counts.min()) < 0 or int(counts.max()) == 0:
        raise ValueError("counts are empty, negative or all zero: count the tokens of the training text")
    return counts.to("cpu", torch.int64)
