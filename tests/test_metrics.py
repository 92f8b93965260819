"""Every metric against the independent reference, against values worked by hand, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from geomcallbacks import metrics
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import spectrum_of, spectrum_of_rows

SHAPES = {"n>d": (300, 48), "n=d+1": (49, 48), "n=d": (48, 48), "n<d": (48, 130)}
WINDOW = (3, 36)


def described(features_nd: torch.Tensor, window: tuple[int, int]) -> dict[str, float | None]:
    """The metrics as the monitor gets them: from moments filled in batches when n > d, else from rows."""
    n, d = features_nd.shape
    store = Rows(d) if n <= d else Moments(d)
    for start in range(0, n, 17):
        batch_bd = features_nd[start : start + 17]
        store.update(batch_bd, torch.arange(start, start + len(batch_bd)))
    values, reasons = metrics.describe(spectrum_of(store), window)
    assert reasons == {}
    return values


def assert_close(got: dict[str, float | None], wanted: dict[str, float], rtol: float) -> None:
    assert list(got) == list(metrics.METRIC_NAMES) == list(wanted)
    wrong = {
        name: (got[name], wanted[name]) for name in wanted if not math.isclose(got[name], wanted[name], rel_tol=rtol)
    }
    assert not wrong


@pytest.mark.parametrize("mean", [0.5, 1e4], ids=lambda mean: f"mean={mean:g}")
@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_reference(shape: tuple[int, int], decay: float, mean: float) -> None:
    features_nd = reference.features(*shape, decay=decay, mean=mean)
    wanted = reference.describe(features_nd, WINDOW)
    assert wanted["alpha_req"] == pytest.approx(decay, abs=0.2)  # about what was put in
    assert wanted["alpha_req_r2"] < 0.999
    assert_close(described(torch.from_numpy(features_nd), WINDOW), wanted, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_reference_on_centred_features(shape: tuple[int, int]) -> None:
    """Without a mean Z itself lacks a rank when n <= d, and only the singular values' round-off could tell."""
    features_nd = reference.features(*shape)
    wanted = reference.describe(features_nd, WINDOW)
    got = described(torch.from_numpy(features_nd), WINDOW)
    assert got.pop("mean_norm") == pytest.approx(wanted.pop("mean_norm"), abs=1e-14)
    wrong = {name: got[name] for name in wanted if not math.isclose(got[name], wanted[name], rel_tol=1e-9)}
    assert not wrong


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_low_precision_features(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    """All arithmetic is float64: the rounding of the features themselves is the only error."""
    exact_nd = reference.features(*shape, mean=0.5)
    rounded_nd = torch.from_numpy(exact_nd).to(dtype)
    got = described(rounded_nd, WINDOW)
    assert_close(got, reference.describe(rounded_nd.to(torch.float64).numpy(), WINDOW), rtol=1e-9)
    assert_close(got, reference.describe(exact_nd, WINDOW), rtol=tolerance)


@pytest.mark.parametrize("mean", [0.5, 1e4], ids=lambda mean: f"mean={mean:g}")
def test_wide_features(mean: float) -> None:
    features_nd = reference.features(260, 5120, mean=mean)
    window = (11, 100)
    assert_close(described(torch.from_numpy(features_nd), window), reference.describe(features_nd, window), rtol=1e-9)


def test_official_code_of_the_paper() -> None:
    features_nd = np.random.default_rng(0).standard_normal((600, 160)) @ np.diag(np.arange(1.0, 161.0) ** -0.4)
    explained = reference.covariance_spectrum(features_nd)
    spectrum = spectrum_of_rows(torch.from_numpy(features_nd)).eigenvalues
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
    spectrum = torch.full((37,), scale, dtype=torch.float64)
    assert metrics.rankme(spectrum) == pytest.approx(37, rel=1e-13)
    assert metrics.rankme_garrido(spectrum) == pytest.approx(37, rel=1e-13)
    assert metrics.participation_ratio(spectrum) == pytest.approx(37, rel=1e-13)
    assert metrics.stable_rank(spectrum) == pytest.approx(37, rel=1e-13)
    assert metrics.top_share(spectrum, 1) == pytest.approx(1 / 37, rel=1e-13)
    assert metrics.top_share(spectrum, 10) == pytest.approx(10 / 37, rel=1e-13)
    assert metrics.alpha_req(spectrum, (2, 30))[0] == pytest.approx(0, abs=1e-12)


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


@pytest.mark.parametrize(("n", "reading"), [(256, 95), (1024, 146)])
def test_sample_size_bias_of_the_design_page(n: int, reading: int) -> None:
    """One draw of n rows; its own spread is some 3 %."""
    rows_nd = torch.randn(n, 1024, dtype=torch.float64) * torch.arange(1, 1025, dtype=torch.float64) ** -0.5
    assert metrics.rankme(spectrum_of_rows(rows_nd).eigenvalues) == pytest.approx(reading, rel=0.1)


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


def test_flat_spectrum_is_recorded_with_a_reason() -> None:
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(7):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    values, reasons = metrics.describe(spectrum_of_rows(0.3 * hadamard[:, 1:]), (11, 100))
    assert values["rankme"] == pytest.approx(127, rel=1e-12)
    assert values["alpha_req"] == pytest.approx(0, abs=1e-12)
    assert values["alpha_req_r2"] is None
    assert reasons == {"alpha_req_r2": "the spectrum is flat over the window"}


@pytest.mark.parametrize("store", [Rows, Moments])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1 * 1e4, 1e-20, -1 / 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constant_rows_have_no_value(store: type, value: float, dtype: torch.dtype) -> None:
    kept = store(6)
    for size in (3, 7, 11, 1):
        kept.update(torch.full((size, 6), value, dtype=dtype), torch.zeros(size, dtype=torch.int64))
    values, reasons = metrics.describe(spectrum_of(kept), (1, 3))
    assert set(values) == set(reasons) == set(metrics.METRIC_NAMES)
    assert not any(value is not None for value in values.values())
    assert set(reasons.values()) == {"all rows are equal, so the covariance is zero"}


def test_smallest_variance_counts() -> None:
    """Rows that differ in float32's last place are not constant."""
    rows_nd = torch.full((50, 6), 1000.1, dtype=torch.float32)
    rows_nd[::2] = torch.nextafter(rows_nd[::2], torch.tensor(2000.0))
    values, _ = metrics.describe(spectrum_of_rows(rows_nd), (1, 3))
    assert values["rankme"] == pytest.approx(1, abs=1e-6)
    assert values["top1_share"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("store", [Rows, Moments])
def test_one_row_has_no_value(store: type) -> None:
    kept = store(6)
    kept.update(torch.randn(1, 6), torch.zeros(1, dtype=torch.int64))
    values, reasons = metrics.describe(spectrum_of(kept), (1, 3))
    assert set(values.values()) == {None}
    assert set(reasons) == set(metrics.METRIC_NAMES)
    assert set(reasons.values()) == {"one row has no covariance"}


@pytest.mark.parametrize(("n", "d", "rank"), [(46, 768, 45), (46, 46, 45), (500, 60, 60)])
def test_window_beyond_the_shape_has_no_alpha(n: int, d: int, rank: int) -> None:
    values, reasons = metrics.describe(spectrum_of_rows(torch.randn(n, d)), (11, 100))
    assert values["alpha_req"] is None
    assert values["alpha_req_r2"] is None
    assert reasons == dict.fromkeys(
        ("alpha_req", "alpha_req_r2"), f"ranks 11 to 100 reach past the rank {rank} of the data"
    )
    assert values["rankme"] > 1


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_window_beyond_the_rank_of_the_data_has_no_alpha(mean: float) -> None:
    """Shape allows the window and only the data show that rank 30 ends it."""
    rows_nd = torch.randn(400, 30, dtype=torch.float64) @ torch.randn(30, 120, dtype=torch.float64) + mean
    values, reasons = metrics.describe(spectrum_of_rows(rows_nd), (11, 100))
    assert values["alpha_req"] is None
    assert reasons["alpha_req"] == "ranks 11 to 100 reach past the rank 30 of the data"
    assert metrics.describe(spectrum_of_rows(rows_nd), (5, 30))[0]["alpha_req"] is not None


def test_rankme_garrido_of_deficient_features() -> None:
    """Round-off in 700 empty directions adds up to nothing."""
    rows_nd = torch.randn(900, 20, dtype=torch.float64) @ torch.randn(20, 300, dtype=torch.float64)
    sigma = np.linalg.svd(rows_nd.numpy(), compute_uv=False)[:20]
    wanted = math.exp(-sum(p * math.log(p) for p in sigma / sigma.sum()))
    got, _ = metrics.describe(spectrum_of_rows(rows_nd), (2, 10))
    assert got["rankme_garrido"] == pytest.approx(wanted, rel=1e-9)


def test_zero_spectrum_is_nan_everywhere() -> None:
    zero = torch.zeros(20)
    found = [
        metrics.rankme(zero),
        metrics.rankme_garrido(zero),
        *metrics.alpha_req(zero, (2, 9)),
        metrics.participation_ratio(zero),
        metrics.stable_rank(zero),
        metrics.top_share(zero, 1),
    ]
    assert all(math.isnan(value) for value in found)


def test_python_floats_keep_their_digits() -> None:
    """torch makes a list of floats float32 unless told otherwise."""
    spectrum = [1 / i for i in range(1, 30)]
    assert metrics.rankme(spectrum) == pytest.approx(float(metrics.rankme(np.array(spectrum))), rel=1e-14)


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
        (lambda: metrics.rankme([]), r"spectrum of shape \(0,\)"),
        (lambda: metrics.rankme(torch.ones(2, 3)), r"spectrum of shape \(2, 3\).*one-dimensional"),
        (lambda: metrics.rankme([1.0], eps=-1e-7), r"eps=-1e-07 is no share: give"),
        (lambda: metrics.rankme([1.0], top=0), r"top=0 keeps no eigenvalue: give"),
        (lambda: metrics.top_share([1.0], 0), r"k=0 takes no direction: give"),
        (
            lambda: metrics.alpha_req(torch.ones(45)),
            r"window=\(11, 100\) reaches past the 45 eigenvalues.*end it at 45",
        ),
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
