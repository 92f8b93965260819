"""Rank correlation, and an interval for it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: 97.5 % quantile of the normal distribution.
_QUANTILE = 1.959964


def spearman(x_n: ArrayLike, y_n: ArrayLike) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks, equal values sharing the mean of theirs.

    Args:
        x_n: one value of each pair, of at least two. Infinite values have a rank, NaN has none.
        y_n: the other value of each.

    Returns:
        ρ; NaN where one of the two is constant or holds a NaN.

    Raises:
        ValueError: the two differ in number, or there are fewer than two pairs.
    """
    x, y = np.asarray(x_n, dtype=np.float64), np.asarray(y_n, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"x_n of shape {x.shape} and y_n of shape {y.shape} are no pairs: give two or more of them")
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    # Ranks are centred on (n + 1) / 2 whatever the ties, so that the products need no other mean.
    rank_x, rank_y = _ranks(x) - (len(x) + 1) / 2, _ranks(y) - (len(y) + 1) / 2
    scale = math.sqrt(float(rank_x @ rank_x) * float(rank_y @ rank_y))
    return min(1.0, max(-1.0, float(rank_x @ rank_y) / scale)) if scale > 0 else math.nan


def spearman_interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of Spearman's ρ by Fisher's z, with the variance (1 + ρ²/2) / (n − 3).

    Bonett and Wright 2000 (Psychometrika 65, 23-28). It speaks of the choice of rows, not of the seeds of training.

    Args:
        rho: the correlation.
        n: pairs that it was computed from.

    Returns:
        (low, high); NaN for both where ρ has no value or n is less than four.
    """
    if math.isnan(rho) or n < 4:
        return math.nan, math.nan
    if abs(rho) == 1.0:
        return rho, rho
    centre, reach = math.atanh(rho), _QUANTILE * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(centre - reach), math.tanh(centre + reach)


def _ranks(x_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks (n,) from 1; equal values share the mean of theirs."""
    _, inverse_n, count_k = np.unique(x_n, return_inverse=True, return_counts=True)
    shared_k: NDArray[np.float64] = np.cumsum(count_k) - (count_k - 1) / 2
    return shared_k[inverse_n]
