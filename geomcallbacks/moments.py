"""What is kept of the features while a probe is read: mean and second moment in float64, or the rows themselves.

Both stores are filled batch by batch with `update`, and `all_reduce` turns every process's part into the whole, so
that k processes end with what one would have. Neither ever centres by subtracting two large numbers: `Moments` uses
the pairwise update of Chan, Golub and LeVeque (1979), `Rows` is centred when its spectrum is taken.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def float64_device(device: torch.device) -> torch.device:
    """The device on which float64 arithmetic for tensors of `device` is done: itself, but the CPU for MPS."""
    return torch.device("cpu") if device.type == "mps" else device


class Moments:
    """Count, mean (d,) and centred second moment M2 = Σ (x − mean)(x − mean)ᵀ (d, d) of the rows seen, in float64."""

    def __init__(self, d: int, device: torch.device | str = "cpu") -> None:
        device = float64_device(torch.device(device))
        self.d = d
        self.count = 0
        self.mean = torch.zeros(d, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(d, d, dtype=torch.float64, device=device)
        self.eps = 0.0  # of the coarsest dtype that rows came in

    def update(self, rows_nd: Tensor, origin_n: Tensor | None = None) -> None:
        """Add rows (n, d) of any floating dtype; where they came from is not kept."""
        if len(rows_nd) == 0:
            return
        self.eps = max(self.eps, torch.finfo(rows_nd.dtype).eps)
        rows_nd = rows_nd.to(self.mean.device).to(torch.float64)
        mean = rows_nd.mean(0)
        centred_nd = rows_nd - mean
        self._combine(len(rows_nd), mean, centred_nd.T @ centred_nd)

    def merge(self, other: Moments) -> None:
        """Add the rows that `other` has seen; `other` stays as it is."""
        self.eps = max(self.eps, other.eps)
        self._combine(other.count, other.mean.to(self.mean.device), other.m2.to(self.mean.device))

    def all_reduce(self) -> None:
        """Make every process of the default group hold the moments of all processes' rows together."""
        counts = torch.tensor([self.count], dtype=torch.float64, device=self.mean.device)
        coarsest = torch.tensor([self.eps], dtype=torch.float64, device=self.mean.device)
        weighted = self.mean * self.count
        dist.all_reduce(counts)
        dist.all_reduce(coarsest, dist.ReduceOp.MAX)  # a process without rows knows no dtype
        dist.all_reduce(weighted)
        self.eps = float(coarsest.item())
        total = int(counts.item())
        mean = weighted / max(total, 1)
        delta = self.mean - mean
        self.m2 += self.count * torch.outer(delta, delta)
        dist.all_reduce(self.m2)
        self.count, self.mean = total, mean

    def _combine(self, count: int, mean: Tensor, m2: Tensor) -> None:
        total = self.count + count
        if count == 0:
            return
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 += m2
        self.m2.addr_(delta, delta, alpha=self.count * count / total)
        self.count = total


class Rows:
    """The rows themselves, in the dtype they came in: smaller than M2 when n <= d, and needed for resampling.

    Each row carries the number of the probe row that it came from, so that rows of one text stay together when rows
    are resampled.
    """

    def __init__(self, d: int) -> None:
        self.d = d
        self._rows: list[Tensor] = []
        self._origin: list[Tensor] = []

    @property
    def eps(self) -> float:
        """Of the dtype that the rows came in."""
        return max(torch.finfo(rows.dtype).eps for rows in self._rows)

    @property
    def count(self) -> int:
        """Rows held."""
        return sum(len(rows) for rows in self._rows)

    def update(self, rows_nd: Tensor, origin_n: Tensor) -> None:
        """Add rows (n, d) and the probe row (n,) that each came from."""
        self._rows.append(rows_nd)
        self._origin.append(origin_n.to(rows_nd.device))

    def stacked(self) -> tuple[Tensor, Tensor]:
        """All rows (n, d) in float64, and their origin (n,), in the order of the probe's rows.

        The order makes the result independent of how batches were cut and dealt to processes.
        """
        rows_nd, origin_n = torch.cat(self._rows), torch.cat(self._origin)
        order = torch.argsort(origin_n, stable=True)
        device = float64_device(rows_nd.device)
        return rows_nd[order].to(device).to(torch.float64), origin_n[order]

    def all_reduce(self) -> None:
        """Make every process of the default group hold all processes' rows."""
        device = self._rows[0].device
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([self.count], device=device))
        most = max(int(size.item()) for size in sizes)
        rows_nd, origin_n = torch.cat(self._rows), torch.cat(self._origin)
        # all_gather wants equal shapes: pad to the longest part, and cut again by the sizes.
        rows = [torch.empty_like(rows_nd.new_zeros(most, self.d)) for _ in sizes]
        origins = [origin_n.new_zeros(most) for _ in sizes]
        missing = most - len(rows_nd)
        dist.all_gather(rows, torch.cat([rows_nd, rows_nd.new_zeros(missing, self.d)]))
        dist.all_gather(origins, torch.cat([origin_n, origin_n.new_zeros(missing)]))
        self._rows = [part[: int(size.item())] for part, size in zip(rows, sizes, strict=True)]
        self._origin = [part[: int(size.item())] for part, size in zip(origins, sizes, strict=True)]
