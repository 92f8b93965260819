"""What is kept of the features while a probe is read: mean and second moment in float64, or the rows themselves.

Both stores take batch by batch (`update`), turn every process's part into the whole (`all_reduce`), so that k processes
end with what one would have, and give what they hold (`finish`). Neither ever centres by subtracting two large numbers:
`Moments` uses the pairwise update of Chan, Golub and LeVeque (1979), `Rows` is centred when its spectrum is taken.
Neither ever waits for the device: how many features a probe gives is known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from geomcallbacks.reading.device import float64_device, send

#: Rows that are squared together: with a batch's few, M2 is read and written far more often than the arithmetic needs.
_BLOCK = 1024
#: Columns of M2 that are added together, from the diagonal down: what lies above is the same.
_STRIP = 512


class Moments:
    """Mean and centred second moment of the rows seen. Rows wait until there is a block of them."""

    def __init__(self, d: int, device: torch.device | str = "cpu") -> None:
        device = float64_device(torch.device(device))
        self.d = d
        self.eps = 0.0  # relative error of the rows: at least that of the coarsest dtype that they came in
        self._count = 0
        self._added = 0  # rows that no longer wait
        self._waiting: list[Tensor] = []
        self._mean = torch.zeros(d, dtype=torch.float64, device=device)
        self._m2 = torch.zeros(d, d, dtype=torch.float64, device=device)  # from the diagonal's strips down

    def update(self, rows_nd: Tensor, origin_n: Tensor | None = None) -> None:
        """Add rows (n, d) of any floating dtype, which must not be changed afterwards. Their origin is not kept."""
        self.eps = max(self.eps, torch.finfo(rows_nd.dtype).eps)
        if len(rows_nd) == 0:
            return
        self._waiting.append(rows_nd)
        self._count += len(rows_nd)
        if self._count - self._added >= _BLOCK:
            self._add_waiting()

    def prepare(self, counts_n: Tensor) -> None:
        """Do all of `all_reduce` that takes memory, so that a process which has none left never enters it alone.

        Args:
            counts_n: (n,) how many features each row of the probe gives, over all processes.
        """
        self._add_waiting()
        self._total = int(counts_n.sum())
        self._shared_mean = self._mean * (self._count / self._total)

    def all_reduce(self, groups: tuple[Any, ...]) -> None:
        """Make every process hold the moments of all processes' rows together, after `prepare`.

        Args:
            groups: process groups, over which is summed in turn (`Spread.groups`).
        """
        for group in groups:
            dist.all_reduce(self._shared_mean, group=group)
        self._mean -= self._shared_mean  # in place: what remains is how far this process's mean lies from that of all
        self._m2.addr_(self._mean, self._mean, alpha=self._count)
        for group in groups:
            dist.all_reduce(self._m2, group=group)
        self._count, self._added, self._mean = self._total, self._total, self._shared_mean

    def finish(self) -> tuple[int, Tensor, Tensor]:
        """Return number n, mean (d,) and centred second moment M2 (d, d) = Σ (x − mean)(x − mean)ᵀ of all rows seen.

        In float64. A later `update` writes into the same M2.
        """
        self._add_waiting()
        for start, end in self._strips():
            self._m2[start:end, end:] = self._m2[end:, start:end].T
        return self._count, self._mean, self._m2

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        rows_nd = torch.cat(self._waiting).to(self._mean.device).to(torch.float64)
        self._waiting = []
        mean = rows_nd.mean(0)
        rows_nd -= mean
        total = self._added + len(rows_nd)
        delta = mean - self._mean
        self._mean = self._mean + delta * (len(rows_nd) / total)
        self._m2.addr_(delta, delta, alpha=self._added * len(rows_nd) / total)
        self._added = total
        for start, end in self._strips():
            self._m2[start:, start:end].addmm_(rows_nd[:, start:].T, rows_nd[:, start:end])

    def _strips(self) -> list[tuple[int, int]]:
        return [(start, min(start + _STRIP, self.d)) for start in range(0, self.d, _STRIP)]


class Rows:
    """The rows themselves, in the dtype they came in: smaller than M2 when n <= d, and needed for resampling.

    Each row carries the number of the probe row that it came from, so that rows of one text stay together when rows
    are resampled.
    """

    def __init__(self, d: int) -> None:
        self.d = d
        self.eps = 0.0  # see `Moments`
        self._rows: list[Tensor] = []
        self._origin: list[Tensor] = []

    def update(self, rows_nd: Tensor, origin_n: Tensor) -> None:
        """Add rows (n, d) and the probe row (n,), on the CPU, that each came from."""
        self.eps = max(self.eps, torch.finfo(rows_nd.dtype).eps)
        self._rows.append(rows_nd)
        self._origin.append(origin_n)

    def prepare(self, counts_n: Tensor) -> None:
        """Make room for all processes' rows. See `Moments.prepare`."""
        rows_nd, origin_n = self._in_order()
        # Each process puts its rows where they belong into zeros; a sum with zeros is exact in any dtype.
        first_n = counts_n.cumsum(0) - counts_n
        slot_n = first_n[origin_n] + torch.arange(len(origin_n), device="cpu") - torch.searchsorted(origin_n, origin_n)
        whole_nd = rows_nd.new_zeros(int(counts_n.sum()), self.d)
        whole_nd[send(slot_n, rows_nd.device)] = rows_nd
        self._rows = [whole_nd]
        self._origin = [torch.arange(len(counts_n), device="cpu").repeat_interleave(counts_n)]

    def all_reduce(self, groups: tuple[Any, ...]) -> None:
        """Make every process hold all processes' rows, after `prepare`. See `Moments.all_reduce`."""
        for group in groups:
            dist.all_reduce(self._rows[0], group=group)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return all rows (n, d) in float64, and the probe row (n,), on the CPU, that each came from.

        They stand in the order of the probe, however batches were cut and dealt to processes.
        """
        rows_nd, origin_n = self._in_order()
        return rows_nd.to(float64_device(rows_nd.device)).to(torch.float64), origin_n

    def _in_order(self) -> tuple[Tensor, Tensor]:
        rows_nd, origin_n = torch.cat(self._rows), torch.cat(self._origin)
        order = torch.argsort(origin_n, stable=True)
        return rows_nd[send(order, rows_nd.device)], origin_n[order]


@dataclass
class Layer:
    """What is gathered of one layer."""

    store: Moments | Rows
    bad: Tensor  # rows with a non-finite value, 0-d on the device
    module: str


class Gathered:
    """What a pass over a probe gathers of its layers.

    Args:
        n: features that the whole probe gives.
        intervals: rows are kept for resampling.

    Attributes:
        layers: by label; empty once memory has run out here.
        crowded: how it did. A forward pass that runs out of memory is another matter.
    """

    def __init__(self, n: int, intervals: bool) -> None:
        self._n, self._intervals = n, intervals
        self.layers: dict[str, Layer] = {}
        self.crowded: Exception | None = None

    def add(self, features: Mapping[str, tuple[str, Tensor]], origin_m: Tensor) -> None:
        """Add a batch: for each label the module's name and features (m, d), and the probe row (m,) of each."""
        if self.crowded is not None:
            return
        with self._fitting():
            for label, (name, feature_md) in features.items():
                d, own = feature_md.shape[1], feature_md.device  # a model may lie on several devices
                if label not in self.layers:
                    store = Rows(d) if self._n <= d or self._intervals else Moments(d, own)
                    self.layers[label] = Layer(store, torch.zeros((), dtype=torch.int64, device=own), name)
                layer = self.layers[label]
                layer.bad += (~torch.isfinite(feature_md).all(1)).sum()
                layer.store.update(feature_md, origin_m)

    def prepare(self, counts_n: Tensor) -> None:
        """Make room for what all processes have gathered; see `Moments.prepare`."""
        with self._fitting():
            for layer in self.layers.values():
                layer.store.prepare(counts_n)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.crowded = error.with_traceback(None)  # whose frames hold what has filled the memory
        if self.crowded is not None:
            self.layers.clear()
