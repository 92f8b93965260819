"""Intervals against a jackknife written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import scipy.stats
import torch

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.spectra.moments import Rows
from geomcallbacks.spectra.summary import GROUPS, jackknife

WINDOW = (2, 6)


def store(rows_nd: np.ndarray, origin_n: np.ndarray | None = None) -> Rows:
    rows = Rows(rows_nd.shape[1])
    rows.update(
        torch.from_numpy(rows_nd), torch.arange(len(rows_nd)) if origin_n is None else torch.from_numpy(origin_n)
    )
    return rows


@pytest.mark.parametrize(("n", "d", "per_row"), [(200, 8, 1), (30, 40, 1), (120, 8, 3)])
def test_against_the_reference(n: int, d: int, per_row: int) -> None:
    rows_nd = reference.features(n, d, mean=0.5)
    origin_n = np.arange(n) // per_row
    got = jackknife(store(rows_nd, origin_n), WINDOW)
    whole = reference.describe(rows_nd, WINDOW)
    parts = [reference.describe(rows_nd[origin_n % 20 != group], WINDOW) for group in range(20)]
    quantile = scipy.stats.t.ppf(0.975, df=19)
    assert list(got) == list(METRIC_NAMES)
    for name, (low, high) in got.items():
        values = np.array([part[name] for part in parts])
        reach = quantile * np.sqrt(19.0 * values.var())
        assert (low + high) / 2 == pytest.approx(whole[name], rel=1e-9)
        assert (high - low) / 2 == pytest.approx(reach, rel=1e-5)


def test_correlated_features_of_one_row_are_left_out_together() -> None:
    """Three copies of each row say no more than one: treated as three rows they would look more certain."""
    rows_nd = np.random.default_rng(0).standard_normal((60, 5))
    once = jackknife(store(rows_nd), (2, 5))["rankme"]
    copies = jackknife(store(rows_nd.repeat(3, axis=0), np.arange(180) // 3), (2, 5))["rankme"]
    assert copies[1] - copies[0] == pytest.approx(once[1] - once[0], rel=0.02)


def test_too_few_rows_have_no_interval() -> None:
    assert jackknife(store(reference.features(GROUPS - 1, 8)), WINDOW) == {}
    few_texts = np.arange(60) % (GROUPS - 1)
    assert jackknife(store(reference.features(60, 8), few_texts), WINDOW) == {}


def test_metric_without_a_value_has_no_interval() -> None:
    """The window fits the whole sample, and no sample with a group left out."""
    got = jackknife(store(reference.features(25, 30)), (2, 24))
    assert "alpha_req" not in got
    assert "rankme" in got
    assert jackknife(store(np.ones((40, 4))), (1, 3)) == {}
