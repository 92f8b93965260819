"""Every metric of a spectrum against the independent reference, and the reason where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import scipy.linalg
import torch

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import spectrum_of, spectrum_of_rows
from geomcallbacks.spectra.summary import describe

SHAPES = {"n>d": (300, 48), "n=d+1": (49, 48), "n=d": (48, 48), "n<d": (48, 130)}
WINDOW = (3, 36)


def described(features_nd: torch.Tensor, window: tuple[int, int]) -> dict[str, float | None]:
    """The metrics as the monitor gets them: from moments filled in batches when n > d, else from rows."""
    n, d = features_nd.shape
    store = Rows(d) if n <= d else Moments(d)
    for batch_bd, origin_b in zip(features_nd.split(17), torch.arange(n).split(17), strict=True):
        store.update(batch_bd, origin_b)
    values, reasons = describe(spectrum_of(store), window)
    assert reasons == {}
    assert tuple(values) == METRIC_NAMES
    return values


@pytest.mark.parametrize("mean", [0.0, 0.5, 1e4], ids=lambda mean: f"mean={mean:g}")
@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_reference(shape: tuple[int, int], decay: float, mean: float) -> None:
    """Without a mean Z itself lacks a rank when n <= d, and only the singular values' round-off could tell."""
    features_nd = reference.features(*shape, decay=decay, mean=mean)
    wanted = reference.describe(features_nd, WINDOW)
    assert wanted["alpha_req"] == pytest.approx(decay, abs=0.2)  # about what was put in
    assert wanted["alpha_req_r2"] < 0.999
    assert described(torch.from_numpy(features_nd), WINDOW) == pytest.approx(wanted, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_low_precision_features(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    """All arithmetic is float64: the rounding of the features themselves is the only error."""
    exact_nd = reference.features(*shape, mean=0.5)
    rounded_nd = torch.from_numpy(exact_nd).to(dtype)
    got = described(rounded_nd, WINDOW)
    assert got == pytest.approx(reference.describe(rounded_nd.to(torch.float64).numpy(), WINDOW), rel=1e-9)
    assert got == pytest.approx(reference.describe(exact_nd, WINDOW), rel=tolerance)


def test_flat_spectrum_has_no_r2() -> None:
    values, reasons = describe(spectrum_of_rows(0.3 * torch.from_numpy(scipy.linalg.hadamard(128)[:, 1:])), (11, 100))
    assert values["rankme"] == pytest.approx(127, rel=1e-12)
    assert values["alpha_req"] == pytest.approx(0, abs=1e-12)
    assert values["alpha_req_r2"] is None
    assert reasons == {"alpha_req_r2": "the spectrum is flat over the window"}


@pytest.mark.parametrize("store", [Rows, Moments])
@pytest.mark.parametrize("value", [None, 0.0, 1.0, 0.1 * 1e4, 1e-20, -1 / 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_row_and_equal_rows_have_no_value(store: type, value: float | None, dtype: torch.dtype) -> None:
    kept, one = store(6), value is None
    for size in (1,) if one else (3, 7, 11, 1):
        rows_nd = torch.randn(1, 6, dtype=dtype) if one else torch.full((size, 6), value, dtype=dtype)
        kept.update(rows_nd, torch.zeros(size, dtype=torch.int64))
    reason = "one row has no covariance" if one else "all rows are equal, so the covariance is zero"
    assert describe(spectrum_of(kept), (1, 3)) == (dict.fromkeys(METRIC_NAMES), dict.fromkeys(METRIC_NAMES, reason))


def test_smallest_variance_counts() -> None:
    """Rows that differ in float32's last place are not constant."""
    rows_nd = torch.full((50, 6), 1000.1, dtype=torch.float32)
    rows_nd[::2] = torch.nextafter(rows_nd[::2], torch.tensor(2000.0))
    values, _ = describe(spectrum_of_rows(rows_nd), (1, 3))
    assert values["rankme"] == pytest.approx(1, abs=1e-6)
    assert values["top1_share"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("n", "d", "inner", "mean", "rank"), [
    (46, 768, None, 0.0, 45), (46, 46, None, 0.0, 45), (500, 60, None, 0.0, 60),
    (400, 120, 30, 0.0, 30), (400, 120, 30, 1e3, 30),  # shape allows the window, and only the data show the rank
])  # fmt: skip
def test_window_beyond_the_rank_has_no_alpha(n: int, d: int, inner: int | None, mean: float, rank: int) -> None:
    rows_nd = torch.randn(n, inner or d, dtype=torch.float64)
    if inner is not None:
        rows_nd = rows_nd @ torch.randn(inner, d, dtype=torch.float64) + mean
    values, reasons = describe(spectrum_of_rows(rows_nd), (11, 100))
    reason = f"ranks 11 to 100 reach past the rank {rank} of the data"
    assert reasons == {"alpha_req": reason, "alpha_req_r2": reason}
    assert {name for name, value in values.items() if value is None} == set(reasons)
    assert describe(spectrum_of_rows(rows_nd), (5, rank))[1] == {}


def test_rankme_garrido_of_deficient_features() -> None:
    """Round-off in 280 empty directions adds up to nothing."""
    rows_nd = torch.randn(900, 20, dtype=torch.float64) @ torch.randn(20, 300, dtype=torch.float64)
    sigma = np.linalg.svd(rows_nd.numpy(), compute_uv=False)[:20]
    wanted = math.exp(-sum(p * math.log(p) for p in sigma / sigma.sum()))
    assert describe(spectrum_of_rows(rows_nd), (2, 10))[0]["rankme_garrido"] == pytest.approx(wanted, rel=1e-9)
