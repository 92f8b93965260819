"""Spectra of the smaller Gram matrix against the singular values of the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geomcallbacks.spectra.moments import Moments
from geomcallbacks.spectra.spectrum import spectrum_of, spectrum_of_rows
from geomcallbacks.spectra.summary import describe

SHAPES = [(200, 12), (12, 12), (13, 12), (9, 40), (2, 5), (5, 2), (30, 1), (1, 5)]


def svd(rows_nd: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(rows_nd.numpy(), compute_uv=False)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_against_singular_values(n: int, d: int) -> None:
    rows_nd = torch.randn(n, d, dtype=torch.float64) + 2
    spectrum = spectrum_of_rows(rows_nd)
    assert spectrum.n == n
    r = min(n - 1, d)
    wanted = svd(rows_nd - rows_nd.mean(0))[:r] ** 2 / (n - 1)
    np.testing.assert_allclose(spectrum.eigenvalues.numpy(), wanted, rtol=1e-9)
    np.testing.assert_allclose(spectrum.singular_values.numpy(), svd(rows_nd), rtol=1e-9)
    np.testing.assert_allclose(float(spectrum.mean_norm), np.linalg.norm(rows_nd.numpy().mean(0)), rtol=1e-12)


def test_sample_covariance_by_hand() -> None:
    """Rows (±1, 0), (0, ±2): variances 2/3 and 8/3 with n − 1 = 3."""
    rows_nd = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    spectrum = spectrum_of_rows(rows_nd + torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(spectrum.eigenvalues, torch.tensor([8 / 3, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(spectrum.mean_norm, torch.tensor(5.0, dtype=torch.float64))
    uncentred = spectrum_of_rows(rows_nd).singular_values
    torch.testing.assert_close(uncentred, torch.tensor([8.0, 2.0], dtype=torch.float64).sqrt())


@pytest.mark.parametrize("scale", [3.0, 1e-40, 1e-140, 1e140])
@pytest.mark.parametrize(("n", "d"), [(60, 20), (20, 60)])
def test_invariance(n: int, d: int, scale: float) -> None:
    """A rotation, a shift and another order of rows change nothing; a scale squares."""
    rows_nd = torch.randn(n, d, dtype=torch.float64)
    rotation_dd = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    base, moved_nd = spectrum_of_rows(rows_nd), rows_nd[torch.randperm(n)] @ rotation_dd + 7
    moments = Moments(d)
    moments.update(moved_nd * scale)
    for changed in (spectrum_of_rows(moved_nd * scale), spectrum_of(moments)):
        torch.testing.assert_close(changed.eigenvalues[: n - 1] / scale**2, base.eigenvalues, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(300, 80), (80, 80), (80, 300)])
def test_descending_and_never_negative(n: int, d: int) -> None:
    rows_nd = torch.randn(n, 5, dtype=torch.float64) @ torch.randn(5, d, dtype=torch.float64)
    spectrum = spectrum_of_rows(rows_nd)
    for values in (spectrum.eigenvalues, spectrum.singular_values):
        assert (values >= 0).all()
        assert (values.diff() <= 0).all()
    assert len(spectrum.eigenvalues) == min(n - 1, d)
    assert len(spectrum.singular_values) == min(n, d)
    assert (spectrum.singular_values[5:] == 0).all()
    assert (spectrum.singular_values[:5] > 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [600, 60])
def test_round_off_of_the_features_own_dtype_has_no_alpha(dtype: torch.dtype, n: int) -> None:
    """Five directions and a mean: what lies behind the fifth is what the dtype rounded away."""
    generator = torch.Generator().manual_seed(0)
    exact_nd = torch.randn(n, 5, generator=generator) @ torch.randn(5, 64, generator=generator) + 100.0
    full_nd = torch.randn(n, 64, generator=generator) + 1.0
    moments = Moments(64)
    moments.update(exact_nd.to(dtype))
    for spectrum in (spectrum_of_rows(exact_nd.to(dtype)), spectrum_of(moments)):
        values, reasons = describe(spectrum, (7, 40))
        assert values["alpha_req"] is values["alpha_req_r2"] is None
        assert reasons["alpha_req"] == "ranks 7 to 40 reach past the rank 5 of the data"
        assert values["rankme"] == pytest.approx(3.9, abs=1.0)  # what has no alpha has a rank all the same
    assert describe(spectrum_of_rows(full_nd.to(dtype)), (7, 40))[1] == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(5), r"rows_nd of shape \(5,\) is torch.float32: give features \(n, d\)"),
        (torch.ones(0, 3), r"rows_nd of shape"),
        (torch.ones(5, 3).long(), r"is torch.int64: give features"),
        (torch.ones(5, 3) * 1j, r"is torch.complex64: give features"),
        (torch.tensor([[1.0, torch.nan], [2.0, 3.0]]), r"not finite"),
        (torch.randn(5, 3, dtype=torch.float64) * 1e160, r"float64 does not hold"),
    ],
)
def test_rows_that_are_no_features_are_refused(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectrum_of_rows(rows)
