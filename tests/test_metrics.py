"""The functions of a spectrum against values worked by hand and against the official code of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from geomcallbacks import metrics

ALL = {
    "rankme": metrics.rankme,
    "rankme_garrido": metrics.rankme_garrido,
    "alpha": lambda values: metrics.alpha_req(values, (2, 30))[0],
    "r2": lambda values: metrics.alpha_req(values, (2, 30))[1],
    "participation_ratio": metrics.participation_ratio,
    "stable_rank": metrics.stable_rank,
    "top1": lambda values: metrics.top_share(values, 1),
    "top10": lambda values: metrics.top_share(values, 10),
    "rank": metrics.numerical_rank,
}


def test_official_code_of_the_paper() -> None:
    features_nd = np.random.default_rng(0).standard_normal((600, 160)) @ np.diag(np.arange(1.0, 161.0) ** -0.4)
    explained = reference.covariance_spectrum(features_nd)
    spectrum = torch.from_numpy(reference.eigenvalues(features_nd))
    got = metrics.rankme(spectrum, eps=1e-7, top=2048)
    assert got == pytest.approx(reference.official_rankme(explained, n=600), rel=1e-9)
    assert got != pytest.approx(float(metrics.rankme(spectrum)), rel=1e-5)  # the setting matters
    alpha, _ = metrics.alpha_req(spectrum, (12, 100))
    assert alpha == pytest.approx(reference.official_alpha(explained), rel=1e-9)
    assert alpha != pytest.approx(float(metrics.alpha_req(spectrum)[0]), rel=1e-4)


def test_official_code_truncates_at_2048() -> None:
    spectrum = np.arange(1.0, 4097.0) ** -1.0
    got = metrics.rankme(torch.from_numpy(spectrum), eps=1e-7, top=2048)
    assert got == pytest.approx(reference.official_rankme(spectrum, n=15_000), rel=1e-9)
    assert got != pytest.approx(float(metrics.rankme(torch.from_numpy(spectrum), eps=1e-7)), rel=0.1)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 7.7, 1e30])
def test_isotropic_spectrum(scale: float) -> None:
    found = {name: function(torch.full((37,), scale, dtype=torch.float64)) for name, function in ALL.items()}
    wanted = dict.fromkeys(ALL, 37) | {"alpha": 0, "r2": math.nan, "top1": 1 / 37, "top10": 10 / 37}
    assert found == pytest.approx(wanted, rel=1e-13, abs=1e-12, nan_ok=True)


def test_two_eigenvalues_by_hand() -> None:
    """λ = (3, 1): H = 2 ln 2 − ¾ ln 3, (Σλ)²/Σλ² = 16/10, Σλ/λ₁ = 4/3."""
    assert metrics.rankme([3.0, 1.0]) == pytest.approx(4 / 3**0.75, rel=1e-14)
    assert metrics.rankme([3.0, 1.0, 0.0]) == pytest.approx(4 / 3**0.75, rel=1e-14)  # 0 ln 0 = 0
    assert metrics.participation_ratio([3.0, 1.0]) == pytest.approx(1.6, rel=1e-14)
    assert metrics.stable_rank([3.0, 1.0]) == pytest.approx(4 / 3, rel=1e-14)
    assert metrics.top_share([3.0, 1.0], 1) == pytest.approx(0.75, rel=1e-14)
    assert metrics.top_share([3.0, 1.0], 10) == pytest.approx(1.0, rel=1e-14)


def test_three_ranks_of_alpha_by_hand() -> None:
    """Through (0, 0), (ln 2, −1), (ln 3, −1), weighted 1, 1/2, 1/3: the normal equations written out."""
    x, y = (0.0, math.log(2), math.log(3)), (0.0, -1.0, -1.0)
    sw, sx, sy = 11 / 6, x[1] / 2 + x[2] / 3, -5 / 6
    sxx, sxy = x[1] ** 2 / 2 + x[2] ** 2 / 3, -x[1] / 2 - x[2] / 3
    slope = (sw * sxy - sx * sy) / (sw * sxx - sx**2)
    intercept = (sy - slope * sx) / sw
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    alpha, r2 = metrics.alpha_req([math.exp(b) for b in y], (1, 3))
    assert alpha == pytest.approx(-slope, rel=1e-13)
    assert r2 == pytest.approx(1 - residual / (2 / 3), rel=1e-13)


def test_values_of_the_design_page() -> None:
    def ranks(d: int) -> torch.Tensor:
        return torch.arange(1, d + 1, dtype=torch.float64)

    assert metrics.rankme(1 / ranks(1024)) == pytest.approx(182, abs=0.5)
    assert metrics.rankme_garrido(ranks(768) ** -0.5) / metrics.rankme(1 / ranks(768)) == pytest.approx(4, abs=0.05)
    steep = metrics.rankme_garrido(ranks(1024) ** -0.75) / metrics.rankme(ranks(1024) ** -1.5)
    assert steep == pytest.approx(26, abs=0.5)
    assert metrics.rankme(torch.ones(4096), eps=1e-5) == pytest.approx(5523, abs=0.5)
    assert metrics.rankme(torch.ones(768), eps=1e-7) / 768 - 1 == pytest.approx(5e-4, rel=0.2)


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("window", [(1, 3), (11, 100), (12, 100), (1, 128)])
def test_alpha_of_a_power_law(exponent: float, window: tuple[int, int]) -> None:
    spectrum = 5.0 * torch.arange(1, 129, dtype=torch.float64) ** -exponent
    alpha, r2 = metrics.alpha_req(spectrum, window)
    assert alpha == pytest.approx(exponent, rel=1e-12)
    assert r2 == pytest.approx(1.0, abs=1e-12)


def test_alpha_sees_its_window_alone() -> None:
    spectrum = torch.arange(1, 129, dtype=torch.float64) ** -1.0
    changed = spectrum.clone()
    changed[:10], changed[100:] = 3.0, 1e-5
    assert metrics.alpha_req(changed)[0] == metrics.alpha_req(spectrum)[0]
    changed[10] *= 1.01
    assert metrics.alpha_req(changed)[0] != metrics.alpha_req(spectrum)[0]


@pytest.mark.parametrize("value", [1.0, 0.3, 7.7, 123.456])
def test_flat_spectrum_has_no_r2(value: float) -> None:
    """Round-off makes R² of equal eigenvalues anything, −inf among it, which no JSON file can hold."""
    spectrum = torch.full((128,), value, dtype=torch.float64)
    noisy = spectrum * (1 + 1e-15 * torch.randn(128, dtype=torch.float64)).sort(descending=True).values
    for flat in (spectrum, noisy):
        alpha, r2 = metrics.alpha_req(flat)
        assert alpha == pytest.approx(0, abs=1e-13)
        assert math.isnan(r2)


@pytest.mark.parametrize("name", ALL)
def test_a_spectrum_may_come_in_any_order(name: str) -> None:
    """As `torch.linalg.eigvalsh` gives it, which is ascending; and a NaN among the values is a NaN all the same."""
    features_nd = torch.from_numpy(reference.features(200, 40))
    ascending = torch.linalg.eigvalsh(torch.cov(features_nd.T))
    wanted = ALL[name](ascending.flip(0))
    assert torch.isfinite(wanted)
    for order in (ascending, ascending[torch.randperm(40)], ascending.tolist()):
        assert ALL[name](order) == wanted
    for place in (0, 20, 39) if name != "rank" else ():
        spoilt = ascending.clone()
        spoilt[place] = math.nan
        assert math.isnan(ALL[name](spoilt))


@pytest.mark.parametrize("name", [name for name in ALL if name != "rank"])
def test_zero_spectrum_is_nan(name: str) -> None:
    assert math.isnan(ALL[name](torch.zeros(40)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_results_are_float64_scalars(dtype: torch.dtype) -> None:
    spectrum = torch.tensor([8, 4, 2, 1], dtype=dtype)
    for value in (metrics.rankme(spectrum), metrics.alpha_req(spectrum, (1, 4))[1], metrics.top_share(spectrum, 2)):
        assert value.dtype == torch.float64
        assert value.ndim == 0
    assert metrics.participation_ratio(spectrum) == pytest.approx(225 / 85, rel=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.rankme([]), r"a spectrum of shape \(0,\)"),
        (lambda: metrics.rankme(torch.ones(2, 3)), r"a spectrum of shape \(2, 3\).*give \(r,\) real numbers"),
        (lambda: metrics.rankme([1.0], eps=-1e-7), r"eps=-1e-07 is no share: give"),
        (lambda: metrics.rankme([1.0], top=0), r"top=0 takes nothing of a spectrum: give a positive"),
        (lambda: metrics.top_share([1.0], 0), r"k=0 takes nothing of a spectrum: give a positive"),
        (lambda: metrics.alpha_req(torch.ones(45)), r"window=\(11, 100\) reaches past the 45.*end it at 45"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "window", [(0, 10), (10, 10), (10, 11), (100, 11), (1.5, 9), (1,), (1, 2, 3), "ab", None, 7, (-3, 9)]
)
def test_malformed_windows(window: object) -> None:
    with pytest.raises(ValueError, match=r"alpha_window=.* is not a window of ranks: give \(first, last\)"):
        metrics.check_window(window)
