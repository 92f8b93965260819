"""Rank correlation and intervals, by hand and against draws; what counts as a number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomcallbacks.statistics import finite, spearman, spearman_interval, t_interval


def test_worked_by_hand():
    """Ranks 1, 2.5, 2.5, 4 and 4, 2, 3, 1: covariance −4.5 over √(4.5 · 5)."""
    assert spearman([1, 5, 5, 9], [40, 20, 30, 10]) == pytest.approx(-4.5 / math.sqrt(22.5), abs=1e-15)
    assert spearman([1, 2, 3], [-math.inf, 0, math.inf]) == 1.0
    assert spearman([1, 2, 3], [9, 4, 1]) == -1.0


def test_no_value():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1, math.nan, 1], [1, 2, 3]))
    assert all(map(math.isnan, spearman_interval(math.nan, 100)))
    assert all(map(math.isnan, spearman_interval(0.5, 3)))


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([1], [1]), ([[1, 2]], [[1, 2]])])
def test_refuses_what_are_no_pairs(x, y):
    with pytest.raises(ValueError, match="two or more"):
        spearman(x, y)


def test_interval_worked_by_hand():
    """ρ = 0.5, n = 103: z = 0.549306 ± 1.959964 · √(1.125 / 100) = 0.549306 ± 0.207886."""
    low, high = spearman_interval(0.5, 103)
    assert (low, high) == pytest.approx((math.tanh(0.341420), math.tanh(0.757192)), abs=2e-6)
    assert spearman_interval(1.0, 10) == (1.0, 1.0)


def test_t_interval_worked_by_hand():
    """1, 2, 3: mean 2, s = 1, t₂ = 4.302653, so 2 ± 4.302653 / √3."""
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        t_interval([1.0])


def test_what_is_a_number():
    assert [finite(x) for x in (3, 2.5, np.float32(0.5), np.int64(4))] == [3.0, 2.5, 0.5, 4.0]
    assert {finite(x) for x in (None, True, "1", b"1", math.nan, -math.inf, 10**400, 1j, [1.0])} == {None}
