"""Quantiles, intervals and rank correlation, once for all; and what counts as a number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

#: 97.5 % quantile of the normal distribution.
NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)


def finite(value: Any) -> float | None:
    """`value` as a float if it is a finite number.

    None for all else: NaN, infinity, None, text, true and false, an integer that no float reaches.
    """
    if value is None or isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t with so many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of independent values, by Student's t.

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} value(s) have no spread: give at least two")
    reach = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - reach, mean + reach


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval (low, high) of a share of n trials (Wilson 1927, JASA 22)."""
    z = NORMAL_QUANTILE
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, centre - reach), min(1.0, centre + reach)


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
    from scipy.stats import spearmanr

    x, y = np.asarray(x_n, dtype=np.float64), np.asarray(y_n, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"x_n of shape {x.shape} and y_n of shape {y.shape} are no pairs: give two or more of them")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant input, whose ρ is NaN
        return float(spearmanr(x, y).statistic)


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
    centre, reach = math.atanh(rho), NORMAL_QUANTILE * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(centre - reach), math.tanh(centre + reach)
