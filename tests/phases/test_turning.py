"""Turning points against SciPy's isotonic regression and against every description of a short curve."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from geomcallbacks.phases.turning import monotone_costs, noise, stretches


def squared_error(values, cuts, rises):
    parts = np.split(values, cuts)
    fits = [isotonic_regression(part, increasing=rises == (k % 2 == 0)).x for k, part in enumerate(parts)]
    return sum(((fit - part) ** 2).sum() for fit, part in zip(fits, parts, strict=True))


def brute_force(values, sigma):
    """The cheapest description of all: (rises first, number of stretches), and the least error that such a one has."""
    n = len(values)
    flat, found = ((values - values.mean()) ** 2).sum(), []
    for count in range(1, n // 2 + 1):
        for cuts in itertools.combinations(range(1, n), count - 1):
            sizes = np.diff([0, *cuts, n])
            if sizes.min() < 2:
                continue
            charge = count * 2.3 * math.log(n) + 2.5 * np.log(sizes).sum()
            for rises in (True, False):
                error = squared_error(values, cuts, rises)
                found.append((error / sigma**2 + charge, error, rises, count))
    cost, _, rises, count = min(found)
    if cost >= flat / sigma**2:
        return None, 0, flat
    return rises, count, min(error for _, error, *kind in found if kind == [rises, count])


def test_monotone_costs_are_those_of_isotonic_regression() -> None:
    values = np.random.default_rng(0).normal(size=12)
    for increasing, costs in zip((True, False), monotone_costs(values), strict=True):
        for i, j in itertools.product(range(12), repeat=2):
            wanted = squared_error(values[i : j + 1], [], increasing) if i <= j else np.inf
            assert costs[i, j] == pytest.approx(wanted, abs=1e-12)


def test_stretches_are_the_cheapest_description() -> None:
    counts = set()
    for seed in range(12):
        values = np.random.default_rng(seed).normal(size=9).cumsum()
        rises, count, least = brute_force(values, 0.2)
        found = stretches(values, 0.2, least=0.0)
        assert [part.rises for part in found] == [rises == (k % 2 == 0) for k in range(count)]
        if found:  # a turning point belongs to the stretch before it or to the one behind
            turns = itertools.product(*((part.last, part.last + 1) for part in found[:-1]))
            errors = [squared_error(values, cuts, rises) for cuts in turns if np.diff([0, *cuts, 9]).min() >= 2]
            assert min(errors) == pytest.approx(least, abs=1e-9)
        for part, after in itertools.pairwise(found):
            assert (part.last, part.last_range) == (after.first, after.first_range)
            assert part.last_range[0] <= part.last <= part.last_range[1]
        counts.add(count)
    assert {1, 2, 3} <= counts  # every outcome was met


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_noise_of_a_curve_that_bends(sigma: float) -> None:
    generator = np.random.default_rng(1)
    places = np.sort(generator.uniform(0, 4, 4000))
    values = np.abs(places - 2) + np.sin(places) + sigma * generator.normal(size=4000)
    values[::97] += 5  # outliers
    assert noise(places, values, 0.0) == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize("values", [np.arange(9.0), np.array([0.0, 5.0])])
def test_noise_has_a_floor(values) -> None:
    assert noise(np.arange(float(len(values))), values, 0.01) == 0.01
