"""Moments and rows are those of the whole, however the rows came."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geomcallbacks.spectra import moments
from geomcallbacks.spectra.moments import Moments, Rows

N, D = 103, 7
BATCHES = {"one": [N], "singly": [1] * N, "uneven": [50, 1, 2, 50], "with an empty one": [0, 60, 0, 43, 0]}


def rows(mean: float = 0.0) -> torch.Tensor:
    scale = torch.arange(1, D + 1, dtype=torch.float64)
    return torch.randn(N, D, dtype=torch.float64) * scale + mean * scale


def assert_whole(store: Moments, rows_nd: torch.Tensor, rtol: float = 1e-12) -> None:
    whole = rows_nd.numpy().astype(np.longdouble)
    mean = whole.mean(axis=0)
    m2 = (whole - mean).T @ (whole - mean)
    n, mean_d, m2_dd = store.finish()
    assert n == len(whole)
    assert mean_d.dtype == m2_dd.dtype == torch.float64
    np.testing.assert_allclose(mean_d.numpy(), mean.astype(float), rtol=rtol)
    np.testing.assert_allclose(m2_dd.numpy(), m2.astype(float), rtol=rtol, atol=rtol * float(np.abs(m2).max()))


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("mean", "rtol"), [(3.0, 1e-12), (1e4, 1e-10)])
def test_batches_give_the_whole(sizes: list[int], mean: float, rtol: float) -> None:
    rows_nd, store = rows(mean), Moments(D)
    before = rows_nd.clone()
    for batch_bd in rows_nd.split(sizes):
        store.update(batch_bd)
    assert_whole(store, before, rtol)
    assert torch.equal(rows_nd, before)  # what is given is not changed


@pytest.mark.parametrize("strip", [1, 3, 7, 10])
def test_blocks_and_strips_give_the_whole(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    """Rows that fill several blocks, finished in between, at widths that strips divide and do not."""
    monkeypatch.setattr(moments, "_BLOCK", 20)
    monkeypatch.setattr(moments, "_STRIP", strip)
    rows_nd, store = rows(3.0), Moments(D)
    for first, batch_bd in zip(range(0, N, 9), rows_nd.split(9), strict=True):
        store.update(batch_bd)
        if first % 4 == 0:
            assert_whole(store, rows_nd[: first + 9])
    assert_whole(store, rows_nd)


def test_parts_with_means_far_apart() -> None:
    rows_nd, store = torch.cat([rows(0.0), rows(1e6)]), Moments(D)
    for part_nd in rows_nd.split(N):
        store.update(part_nd)
        store.finish()
    assert_whole(store, rows_nd)


def test_a_device_without_float64_leaves_the_arithmetic_to_the_cpu() -> None:
    rows_nd, store = rows(3.0), Moments(D, "mps")
    store.update(rows_nd)
    assert_whole(store, rows_nd)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("parts", [[0], [60, 0, 99, 30]])
def test_rows_come_back_in_the_order_of_the_probe(dtype: torch.dtype, parts: list[int]) -> None:
    """Several features of one probe row keep their own order."""
    rows_nd, origin_n, store = rows().to(dtype), torch.arange(N) // 3, Rows(D)
    for first in parts:
        part = slice(first, min([other for other in parts if other > first], default=N))
        store.update(rows_nd[part], origin_n[part])
    got_nd, got_n = store.finish()
    assert got_nd.dtype == torch.float64
    assert torch.equal(got_nd, rows_nd.to(torch.float64))
    assert torch.equal(got_n, origin_n)
