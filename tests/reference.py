"""What the package must compute, by another route: NumPy and SciPy in float64, from the feature matrix by SVD.

Shares no code and, where there is a choice, no formula with `geomcallbacks`: spectra come from singular values rather
than from a Gram matrix, entropies from `scipy.stats`, the line of α-ReQ from `numpy.polyfit`.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.stats

Array = np.ndarray


def eigenvalues(features_nd: Array) -> Array:
    """Descending eigenvalues (min(n − 1, d),) of the centred covariance, normalised by n − 1."""
    n, d = features_nd.shape
    centred = features_nd - features_nd.mean(axis=0)
    centred -= centred.mean(axis=0)  # what is left of a large mean after the first subtraction
    return scipy.linalg.svdvals(centred)[: min(n - 1, d)] ** 2 / (n - 1)


def line(spectrum: Array, window: tuple[int, int]) -> tuple[float, float]:
    """(α, R²) of the weighted line through (ln i, ln λᵢ) over the ranks of `window`."""
    ranks = np.arange(window[0], window[1] + 1, dtype=np.float64)
    x, y = np.log(ranks), np.log(spectrum[window[0] - 1 : window[1]])
    coefficients = np.polyfit(x, y, deg=1, w=1.0 / np.sqrt(ranks))  # polyfit squares its weights
    fitted = np.polyval(coefficients, x)
    return -float(coefficients[0]), 1.0 - float(((y - fitted) ** 2).mean() / np.var(y))


def describe(features_nd: Array, window: tuple[int, int]) -> dict[str, float]:
    """Every metric of design section 2, by the names under which the package records it."""
    features_nd = np.asarray(features_nd, dtype=np.float64)
    spectrum = eigenvalues(features_nd)
    centred = features_nd - features_nd.mean(axis=0)
    alpha, r2 = line(spectrum, window)
    share = spectrum / spectrum.sum()
    return {
        "rankme": float(np.exp(scipy.stats.entropy(spectrum))),
        "rankme_garrido": float(np.exp(scipy.stats.entropy(scipy.linalg.svdvals(features_nd)))),
        "alpha_req": alpha,
        "alpha_req_r2": r2,
        "participation_ratio": 1.0 / float(share @ share),
        "stable_rank": float((np.linalg.norm(centred, "fro") / np.linalg.norm(centred, 2)) ** 2),
        "top1_share": float(share[0]),
        "top10_share": float(1.0 - share[10:].sum()),
        "trace": float(np.var(features_nd, axis=0, ddof=1).sum()),
        "mean_norm": float(np.linalg.norm(features_nd.mean(axis=0))),
    }


def covariance_spectrum(features_nd: Array) -> Array:
    """Descending eigenvalues (d,) of the sample covariance: what a full PCA calls its explained variance."""
    return np.linalg.eigvalsh(np.cov(features_nd, rowvar=False))[::-1]


def official_rankme(explained_variance: Array, n: int) -> float:
    """RankMe as the official code of Li et al. 2025 has it: 2048 eigenvalues at most, 1e-7 added to each share."""
    kept = explained_variance[: min(2048, n, len(explained_variance))]
    p = kept / np.sum(kept) + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def official_alpha(explained_variance: Array) -> float:
    """α-ReQ as that code has it: `arange(11, 100)` 0-based, so ranks 12 to 100, normal equations weighted by 1/rank."""
    zero_based = np.arange(11, 100)
    y = np.log(np.abs(explained_variance[zero_based]))[:, None]
    x = np.stack([-np.log(zero_based + 1), np.ones(len(zero_based))], axis=1)
    weighted = x * (1.0 / (zero_based + 1))[:, None]
    return float(np.linalg.solve(x.T @ weighted, weighted.T @ y)[0, 0])


def features(n: int, d: int, *, decay: float = 1.0, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Array:
    """Features (n, d) whose covariance has exactly the eigenvalues scale² · i^−decay · e^(½ cos 2i), i ≤ min(n − 1, d).

    The ripple keeps the spectrum off the line of a power law, on which any window and any weights give the same α.
    `mean` is the common mean of every column, in units of the columns' root mean square spread.
    """
    rng = np.random.default_rng(seed)
    r = min(n - 1, d)
    left = rng.standard_normal((n, r))
    left = np.linalg.qr(left - left.mean(axis=0))[0]  # orthonormal, and orthogonal to the column of ones
    right = np.linalg.qr(rng.standard_normal((d, r)))[0]
    ranks = np.arange(1, r + 1, dtype=np.float64)
    spectrum = scale**2 * ranks**-decay * np.exp(0.5 * np.cos(2 * ranks))
    centred = left * np.sqrt(spectrum * (n - 1)) @ right.T
    spread = np.sqrt(spectrum.sum() / d)
    return centred + mean * spread * rng.choice([-1.0, 1.0], size=d)
