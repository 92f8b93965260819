"""Moments and rows are those of the whole, however the rows came."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import geomcallbacks.spectra.moments
from geomcallbacks.reading.device import float64_device
from geomcallbacks.spectra.moments import Moments, Rows

N, D = 103, 7
BATCHES = {"one": [N], "singly": [1] * N, "uneven": [50, 1, 2, 50], "with an empty one": [0, 60, 0, 43, 0]}


def rows(mean: float = 0.0) -> torch.Tensor:
    scale = torch.arange(1, D + 1, dtype=torch.float64)
    return torch.randn(N, D, dtype=torch.float64) * scale + mean * scale


def filled(rows_nd: torch.Tensor) -> Moments:
    moments = Moments(D)
    moments.update(rows_nd)
    return moments


def assert_whole(moments: Moments, rows_nd: torch.Tensor, rtol: float = 1e-12) -> None:
    whole = rows_nd.numpy().astype(np.longdouble)
    mean = whole.mean(axis=0)
    m2 = (whole - mean).T @ (whole - mean)
    assert moments.count == len(whole)
    np.testing.assert_allclose(moments.mean.numpy(), mean.astype(float), rtol=rtol)
    np.testing.assert_allclose(moments.m2.numpy(), m2.astype(float), rtol=rtol, atol=rtol * float(np.abs(m2).max()))


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("mean", "rtol"), [(3.0, 1e-12), (1e4, 1e-10)])
def test_batches_give_the_whole(sizes: list[int], mean: float, rtol: float) -> None:
    rows_nd = rows(mean)
    moments = Moments(D)
    for batch_bd in rows_nd.split(sizes):
        moments.update(batch_bd)
    assert_whole(moments, rows_nd, rtol)


@pytest.mark.parametrize("strip", [1, 3, 7, 10])
def test_blocks_and_strips_give_the_whole(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    """Rows that fill several blocks, with M2 read between them, at widths that strips divide and do not."""
    monkeypatch.setattr(geomcallbacks.spectra.moments, "_BLOCK", 20)
    monkeypatch.setattr(geomcallbacks.spectra.moments, "_STRIP", strip)
    rows_nd = rows(3.0)
    moments = Moments(D)
    for first, batch_bd in zip(range(0, N, 9), rows_nd.split(9), strict=True):
        moments.update(batch_bd)
        if first % 4 == 0:
            assert_whole(moments, rows_nd[: first + 9])
    assert_whole(moments, rows_nd)
    assert_whole(filled(rows_nd), rows_nd)


def test_parts_with_means_far_apart() -> None:
    rows_nd = torch.cat([rows(0.0), rows(1e6)])
    moments = filled(rows_nd[:N])
    moments.update(rows_nd[N:])
    assert_whole(moments, rows_nd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_rows_are_added_in_float64(dtype: torch.dtype) -> None:
    rows_nd = rows(3.0).to(dtype)
    moments = Moments(D)
    for batch_bd in rows_nd.split(10):
        moments.update(batch_bd)
    assert moments.m2.dtype == moments.mean.dtype == torch.float64
    assert_whole(moments, rows_nd.to(torch.float64))


def test_updating_does_not_change_the_rows() -> None:
    rows_nd = rows()
    before = rows_nd.clone()
    filled(rows_nd)
    assert torch.equal(rows_nd, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_come_back_in_the_order_of_the_probe(dtype: torch.dtype) -> None:
    """Several features of one probe row keep their own order."""
    rows_nd = rows().to(dtype)
    origin_n = torch.arange(N) // 3
    whole = Rows(D)
    whole.update(rows_nd, origin_n)
    dealt = Rows(D)
    for first in (60, 0, 99, 30):
        part = slice(first, {60: 99, 0: 30, 99: N, 30: 60}[first])
        dealt.update(rows_nd[part], origin_n[part])
    assert dealt.count == N
    for store in (whole, dealt):
        got_nd, got_n = store.stacked()
        assert got_nd.dtype == torch.float64
        assert torch.equal(got_nd, rows_nd.to(torch.float64))
        assert torch.equal(got_n, origin_n)


def test_mps_arithmetic_goes_to_the_cpu() -> None:
    assert float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
