"""pass@k against counting every subset."""

from __future__ import annotations

from itertools import combinations

import pytest

from geomcallbacks.behaviour import pass_at_k, pass_at_k_curve


def test_every_subset_counted():
    for samples in range(1, 8):
        for correct in range(samples + 1):
            for k in range(1, samples + 1):
                subsets = list(combinations([i < correct for i in range(samples)], k))
                assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)


def test_stable_where_binomials_overflow():
    """1 − C(9999, 5000)/C(10000, 5000) = 1/2, of binomials with three thousand digits."""
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, rel=1e-12)
    assert pass_at_k(10_000, 9_000, 999) == 1.0


def test_curve_is_the_mean_over_problems():
    assert pass_at_k_curve([0, 1, 4], 4, (1, 2)) == {1: pytest.approx(5 / 12), 2: pytest.approx(1.5 / 3)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 1, 5), "k=5 is more than the samples=4"),
        (lambda: pass_at_k(4, 1, 0), "k=0"),
        (lambda: pass_at_k(4, 5, 1), "correct=5"),
        (lambda: pass_at_k_curve([], 4, (1,)), "correct_p is empty"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
