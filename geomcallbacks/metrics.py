"""Pure functions of a spectrum: the numbers that describe a representation's geometry.

Every function takes a one-dimensional spectrum in any order (a tensor on any device, or anything that
``torch.as_tensor`` accepts), computes in float64 and returns 0-dimensional float64 tensors, so that a caller can
stack many of them and leave the device once. What shape and type alone show to be wrong raises ``ValueError``; what
only the data show (a spectrum of zeros, one that is negative or not finite, a window that reaches into round-off) gives
NaN, which the monitor turns into "no value" with a reason.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

#: The names under which metrics are recorded and logged, in the order in which they are shown.
METRIC_NAMES = (
    "rankme",
    "rankme_garrido",
    "alpha_req",
    "alpha_req_r2",
    "participation_ratio",
    "stable_rank",
    "top1_share",
    "top10_share",
    "trace",
    "mean_norm",
)

DEFAULT_WINDOW = (11, 100)

SpectrumLike = Tensor | Sequence[float]


def rankme(eigenvalues: SpectrumLike, eps: float = 0.0, top: int | None = None) -> Tensor:
    """Effective rank exp(−Σ pᵢ ln pᵢ) with pᵢ = λᵢ/Σλ, λ the eigenvalues of the *centred* covariance.

    This is the convention of Li et al. 2025 (arXiv 2509.23024). It is not `rankme_garrido`, and never to be compared
    with it: on λ ∝ 1/i the two differ by a factor of four.

    Args:
        eigenvalues: (r,) eigenvalues, any scale.
        eps: added to every share after normalising; shares are then *not* renormalised. The official code of the
            paper uses 1e-7 (and `top=2048`); the default adds nothing.
        top: keep only so many leading eigenvalues; shares are of the kept sum.

    Returns:
        A 0-d float64 tensor between 1 and r, or NaN when all eigenvalues are zero.

    Raises:
        ValueError: the spectrum is not one-dimensional or is empty, `eps` is no number from 0 or `top` none from 1.
    """
    if top is not None:
        top = _positive("top", top)
    return _entropy_rank(_as_spectrum(eigenvalues)[:top], eps)


def rankme_garrido(singular_values: SpectrumLike, eps: float = 0.0) -> Tensor:
    """Effective rank over the singular values of the *uncentred* features: RankMe as first published.

    Garrido et al. 2023 (arXiv 2210.02885): exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ/Σσ.

    Args:
        singular_values: (r,) singular values of the feature matrix, its mean not removed.
        eps: added to every share after normalising, as in `rankme`.

    Returns:
        A 0-d float64 tensor between 1 and r, or NaN when all singular values are zero.
    """
    return _entropy_rank(_as_spectrum(singular_values), eps)


def alpha_req(
    eigenvalues: SpectrumLike, window: tuple[int, int] = DEFAULT_WINDOW, floor: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Decay exponent α of the eigenspectrum, λᵢ ∝ i^−α, and the R² of the fit.

    α minimises Σ (1/i)(ln λᵢ − a + α ln i)² over the ranks of the window (α-ReQ, Agrawal et al. 2022; the weights
    follow Stringer et al. 2019). R² is that line's unweighted coefficient of determination over the window.

    Args:
        eigenvalues: (r,) eigenvalues of the centred covariance.
        window: first and last rank of the fit, 1-based and inclusive. α is never comparable across windows. The
            official code of Li et al. 2025 fits ranks 12 to 100; most others, and this default, 11 to 100.
        floor: eigenvalues up to this are round-off too, as `Spectrum.floor` says of features in low precision.

    Returns:
        (α, R²), 0-d float64 tensors; both NaN when the window reaches eigenvalues that are round-off, R² alone NaN
        when the spectrum is flat, to round-off, over the window.

    Raises:
        ValueError: the window is malformed, or reaches past the number of eigenvalues.
    """
    low, high = check_window(window)
    spectrum = _as_spectrum(eigenvalues)
    if high > len(spectrum):
        raise ValueError(f"window={window} reaches past the {len(spectrum)} eigenvalues: end it at {len(spectrum)}")
    values = spectrum[low - 1 : high]
    ranks = torch.arange(low, high + 1, dtype=spectrum.dtype, device=spectrum.device)
    x, y, weight = ranks.log(), values.log(), 1.0 / ranks
    x_mean, y_mean = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean) ** 2).sum()
    residual = y - y_mean - slope * (x - x_mean)
    r2 = 1.0 - residual.square().sum() / (y - y.mean()).square().sum()
    supported = numerical_rank(spectrum, floor) >= high
    # What round-off alone makes of equal eigenvalues has no line to explain: R² would be any number down to -inf.
    flat = values[0] - values[-1] <= values[0] * _relative_error(spectrum)
    nothing = torch.full_like(slope, torch.nan)
    return torch.where(supported, 0.0 - slope, nothing), torch.where(supported & ~flat, r2, nothing)


def participation_ratio(eigenvalues: SpectrumLike) -> Tensor:
    """(Σλ)²/Σλ²: the number of equal eigenvalues with the same first two moments. NaN when all are zero."""
    spectrum = _scaled(_as_spectrum(eigenvalues))
    return spectrum.sum().square() / spectrum.square().sum()


def stable_rank(eigenvalues: SpectrumLike) -> Tensor:
    """Σλ/λ₁. NaN when all eigenvalues are zero."""
    return _scaled(_as_spectrum(eigenvalues)).sum()


def top_share(eigenvalues: SpectrumLike, k: int) -> Tensor:
    """Share of the variance on the k leading directions: what compression makes grow. NaN when Σλ is zero.

    Raises:
        ValueError: k is no whole number from 1.
    """
    spectrum = _scaled(_as_spectrum(eigenvalues))
    return spectrum[: _positive("k", k)].sum() / spectrum.sum()


def numerical_rank(eigenvalues: SpectrumLike, floor: Tensor | float = 0.0) -> Tensor:
    """How many eigenvalues stand above round-off, λᵢ > λ₁ · r · 2⁻⁵² and λᵢ > floor (as a 0-d integer tensor)."""
    spectrum = _as_spectrum(eigenvalues)
    return ((spectrum > spectrum[0] * _relative_error(spectrum)) & (spectrum > floor)).sum()


def check_window(window: tuple[int, int]) -> tuple[int, int]:
    """Return `window` as two integers, or raise ``ValueError`` saying what a window of ranks looks like."""
    try:
        low, high = window
        valid = low == int(low) and high == int(high) and low >= 1 and int(low) + 2 <= int(high)
    except (TypeError, ValueError, OverflowError):  # the last of an infinite rank
        valid = False
    if not valid:
        raise ValueError(f"alpha_window={window!r} is not a window of ranks: give (first, last), three or more from 1")
    return int(low), int(high)


def _entropy_rank(spectrum: Tensor, eps: float) -> Tensor:
    if not isinstance(eps, int | float) or not 0 <= eps <= 1:
        raise ValueError(f"eps={eps!r} is no share: give 0 or a small positive number")
    spectrum = _scaled(spectrum)
    share = spectrum / spectrum.sum() + eps
    return torch.exp(-torch.special.xlogy(share, share).sum())


def _positive(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}={value!r} takes nothing of a spectrum: give a positive whole number")
    return number


def _scaled(spectrum: Tensor) -> Tensor:
    """In units of λ₁, so that neither a sum nor a square leaves the range of float64."""
    return spectrum / spectrum[0]


def _as_spectrum(values: SpectrumLike) -> Tensor:
    """Return `values` in descending order, float64; all NaN where they are no spectrum."""
    try:
        # Given a dtype, a list of Python floats does not go through float32, torch's default.
        spectrum = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"a spectrum of {type(values).__name__} holds no numbers: give real ones ({error})") from error
    if spectrum.ndim != 1 or spectrum.numel() == 0 or spectrum.is_complex():
        raise ValueError(f"a spectrum of shape {tuple(spectrum.shape)} is {spectrum.dtype}: give (r,) real numbers")
    if spectrum.device.type == "mps":  # has no float64
        spectrum = spectrum.cpu()
    spectrum = spectrum.to(torch.float64).sort(descending=True).values  # NaN comes first
    # A solver's zero may be negative by its round-off, and no more.
    sound = torch.isfinite(spectrum[0]) & (spectrum[-1] >= -spectrum[0] * _relative_error(spectrum))
    return torch.where(sound, spectrum.clamp_min(0.0), torch.nan)


def _relative_error(spectrum: Tensor) -> float:
    """What a solver's round-off may come to, in units of λ₁: r · 2⁻⁵²."""
    return len(spectrum) * torch.finfo(spectrum.dtype).eps
