"""Turning points of a noisy curve: its best description by stretches that rise and fall in turn.

Each stretch is fitted by isotonic regression (least squares under monotony), so that nothing is assumed of its shape,
and the best places of the turning points are found for every number of stretches by dynamic programming. A stretch
must pay for itself: the sum of squares, in units of the noise's variance, is charged 2.3 ln n + 2.5 ln m for a stretch
of m of the curve's n points. The second term is for what a monotone fit gains on m points of mere noise (it grows with
ln m: Meyer and Woodroofe 2000, Annals of Statistics 28), the first for what searching n places gains. Both factors were
set on simulated curves that are flat, or rise and then stay: about one in twenty is given a turning point too many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SEARCH, _FREEDOM = 2.3, 2.5  # the two factors of a stretch's charge
_MOST = 8  # stretches of a curve
_FEWEST = 2  # points of a stretch: a single one is an outlier
_CHI2 = 3.841  # 95 % quantile of χ² with one degree of freedom
_KEPT = 0.9  # share of the distances from which the noise is told


@dataclass(frozen=True)
class Stretch:
    """A part of the curve that rises or falls throughout.

    Attributes:
        rises: its direction.
        first, last: indices of its ends: the turning points, or the ends of the curve. Stretches share their ends.
        first_range, last_range: indices between which the turning points may lie; None at an end of the curve.
    """

    rises: bool
    first: int
    last: int
    first_range: tuple[int, int] | None
    last_range: tuple[int, int] | None


def noise(places: Array, values: Array, floor: float) -> float:
    """Return the standard deviation of the scatter of `values` about a smooth curve.

    From each point's distance to the straight line between its neighbours, of which the largest tenth (turning points,
    bends, outliers) is left out and made up for as in normal noise. Few points tell it badly, so 2/(n - 2) of it is
    added.

    Args:
        places: (n,) increasing abscissae.
        values: (n,) ordinates.
        floor: the least that is returned; also what fewer than three points give.
    """
    if len(values) < 3:
        return floor
    left, right = np.diff(places)[:-1], np.diff(places)[1:]
    before, after = right / (left + right), left / (left + right)
    bends = values[1:-1] - before * values[:-2] - after * values[2:]
    squares = np.sort(bends**2 / (1.0 + before**2 + after**2))
    kept = max(1, math.floor(_KEPT * len(squares)))
    widened = 1.0 + 2.0 / (len(values) - 2)
    return max(floor, widened * math.sqrt(float(squares[:kept].mean()) / _smallest_mean(kept / len(squares))))


def monotone_costs(values: Array) -> tuple[Array, Array]:
    """Return the squared error of the best rising and of the best falling fit to every run of points.

    Args:
        values: (n,) ordinates.

    Returns:
        Two (n, n) arrays, of rising and falling fits: entry [i, j] for the points i … j, infinite where j < i.
    """
    n = len(values)
    squares = np.concatenate([[0.0], np.cumsum(values**2)])
    costs = np.full((2, n, n), np.inf)
    for way, signed in enumerate((values.tolist(), (-values).tolist())):
        for i in range(n):
            costs[way, i, i:] = squares[i + 1 :] - squares[i] - _pooled(signed[i:])
    return np.maximum(costs[0], 0.0), np.maximum(costs[1], 0.0)


def direction(values: Array, sigma: float) -> int:
    """Return whether a curve rises (1), falls (-1) or does neither beyond its noise (0)."""
    n = len(values)
    if n < _FEWEST:
        return 0
    centred = values - values.mean()
    flat = float((centred**2).sum())
    rise, fall = (flat - _pooled((way * centred).tolist())[-1] for way in (1.0, -1.0))
    better = min(rise, fall) / sigma**2 + _charge(n, n)
    return 0 if flat / sigma**2 <= better else (1 if rise < fall else -1)


def stretches(values: Array, sigma: float, least: float, short: NDArray[np.bool_] | None = None) -> list[Stretch]:
    """Return the stretches of a curve that stand out of its noise.

    Args:
        values: (n,) ordinates.
        sigma: standard deviation of their noise, not 0.
        least: how far a stretch's fit must at least rise or fall.
        short: (n, n) whether the points i … j are too few or too close for a stretch of their own; None: none are.

    Returns:
        Stretches in order, of alternating direction; none where the curve is flat within its noise or within `least`.
    """
    n = len(values)
    centred = values - values.mean()
    length = np.arange(n)[None, :] - np.arange(n)[:, None] + 1
    charge = _charge(n, np.maximum(length, 1))
    enough = length >= _FEWEST if short is None else (length >= _FEWEST) & ~short
    rising, falling = (np.where(enough, cost / sigma**2, np.inf) for cost in monotone_costs(centred))
    errors = {1: (rising, falling), -1: (falling, rising)}  # by the way of the first stretch
    found = [
        (float(best[-1]), way, count)
        for way, (first, second) in errors.items()
        for count, best in enumerate(_forward((first + charge, second + charge))[0])
        if count > 0 and np.isfinite(best[-1])
    ]
    flat = float((centred**2).sum()) / sigma**2
    for total, first_way, count in sorted(found):
        if total >= flat:
            break
        # The charge says how many; where they turn is for the fit alone.
        reached, came_from = _forward(errors[first_way])
        cuts = _cuts(came_from, count)
        ways = [first_way, -first_way] * (count // 2) + [first_way] * (count % 2)
        fit = _fit(centred, cuts, ways)
        if np.abs(np.diff(fit[_ends(fit, cuts, ways)])).min() >= least:
            ends = _ends(centred, cuts, ways)
            limits = [None, *_ranges(reached, errors[first_way], count), None]
            return [Stretch(ways[k] > 0, ends[k], ends[k + 1], limits[k], limits[k + 1]) for k in range(count)]
    return []


def _smallest_mean(share: float) -> float:
    """Return the mean of the smallest `share` of squared standard normals."""
    if share >= 1.0:
        return 1.0
    edge = NormalDist().inv_cdf((1.0 + share) / 2.0)
    return 1.0 - 2.0 * edge * NormalDist().pdf(edge) / share


def _charge(n: int, points: Array | int) -> Array | float:
    """Return what a stretch of so many of n points is charged."""
    return _SEARCH * math.log(n) + _FREEDOM * np.log(points)


def _pooled(values: list[float]) -> list[float]:
    """Return the sum of squares of the best rising fit to the first 1, 2, … points, by pooling adjacent violators."""
    means: list[float] = []
    sizes: list[int] = []
    sums, squares = [0.0], []
    for value in values:
        mean, size = value, 1
        while means and means[-1] >= mean:
            other = sizes.pop()
            mean = (mean * size + means.pop() * other) / (size + other)
            size += other
            sums.pop()
        means.append(mean)
        sizes.append(size)
        sums.append(sums[-1] + size * mean * mean)
        squares.append(sums[-1])
    return squares


def _forward(costs: tuple[Array, Array]) -> tuple[list[Array], list[NDArray[np.int64]]]:
    """Return the least cost of the first p points in k stretches, and where the k-th then begins, for k = 0, 1, …

    `costs` are those of the first stretch's direction and of the other.
    """
    n = len(costs[0])
    reached = [np.concatenate([[0.0], np.full(n, np.inf)])]
    came_from = [np.zeros(n + 1, dtype=np.int64)]
    for k in range(min(_MOST, n // _FEWEST)):
        through = reached[-1][:n, None] + costs[k % 2]
        begins = through.argmin(0)
        reached.append(np.concatenate([[np.inf], through[begins, np.arange(n)]]))
        came_from.append(np.concatenate([[0], begins]))
    return reached, came_from


def _cuts(came_from: list[NDArray[np.int64]], k: int) -> list[int]:
    """Return [0, p₁, …, n]: how many points lie before each stretch."""
    cuts = [len(came_from[0]) - 1]
    for count in range(k, 0, -1):
        cuts.append(int(came_from[count][cuts[-1]]))
    return cuts[::-1]


def _fit(values: Array, cuts: list[int], ways: list[int]) -> Array:
    """Return the fitted curve (n,)."""
    from scipy.optimize import isotonic_regression

    parts = zip(np.split(values, cuts[1:-1]), ways, strict=True)
    return np.concatenate([isotonic_regression(part, increasing=way > 0).x for part, way in parts])


def _ends(values: Array, cuts: list[int], ways: list[int]) -> list[int]:
    """Return the indices of the first point, the turning points and the last point.

    A cut lies between two points. The curve turns at the higher one behind a rise, at the lower one behind a fall.
    """
    ends = [0]
    for cut, way in zip(cuts[1:-1], ways, strict=False):
        left_is_further = way * values[cut - 1] >= way * values[cut]
        ends.append(cut - 1 if left_is_further else cut)
    return [*ends, len(values) - 1]


def _ranges(reached: list[Array], costs: tuple[Array, Array], k: int) -> list[tuple[int, int]]:
    """Return, for each turning point, the points between which it lies in all descriptions that are nearly as good."""
    n = len(costs[0])
    remaining = np.concatenate([np.full(n, np.inf), [0.0]])
    best = reached[k][n]
    ranges = []
    for turn in range(k - 1, 0, -1):
        through = costs[turn % 2] + remaining[None, 1:]
        remaining = np.concatenate([through.min(1), [np.inf]])
        near = np.flatnonzero(reached[turn] + remaining <= best + _CHI2)
        ranges.append((int(near[0]) - 1, int(near[-1])))
    return ranges[::-1]
