"""Metrics of hostile spectra and rows, and phases of hostile curves: right, without value, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hostile import refused, survive

from geomcallbacks import metrics
from geomcallbacks.behaviour import answer_entropy, distinct_answers, distinct_n, pass_at_k
from geomcallbacks.phases import find_phases
from geomcallbacks.spectra.moments import Moments
from geomcallbacks.spectra.spectrum import spectrum_of, spectrum_of_rows
from geomcallbacks.statistics import spearman

SIZES = pytest.mark.parametrize("count", [300, pytest.param(8_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault

NUMBERS = st.one_of(
    st.floats(),  # infinities, NaN, denormals and negative zero among them
    st.floats(0, 1e3),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-310, 1e-200, 1e200, 1e300, 1.7e308, 1.0, 1e-17, -1e-17]),
)
SPECTRA = st.tuples(st.lists(NUMBERS, min_size=1, max_size=12), st.booleans(), st.sampled_from([1.0, 1e300, 1e-300]))


def exact_shares(values: list[float]) -> list[Fraction]:
    """λ/Σλ as fractions, which neither overflow nor round."""
    whole = sum(map(Fraction, values))
    return [Fraction(value) / whole for value in values]


def close(got: torch.Tensor, wanted: float) -> None:
    assert float(got) == pytest.approx(wanted, rel=1e-9), (float(got), wanted)


def check_spectrum(drawn: tuple[list[float], bool, float]) -> None:
    values, ordered, scale = drawn
    if ordered:
        values = sorted((abs(value) * scale for value in values if math.isfinite(value * scale)), reverse=True) or [0.0]
    functions: dict[str, Callable[[Any], torch.Tensor]] = {
        "rankme": metrics.rankme,
        "rankme_garrido": metrics.rankme_garrido,
        "participation_ratio": metrics.participation_ratio,
        "stable_rank": metrics.stable_rank,
        "top1": lambda x: metrics.top_share(x, 1),
    }
    found = {name: function(values) for name, function in functions.items()}
    sound = all(map(math.isfinite, values)) and all(a >= b for a, b in pairwise(values))
    least = -values[0] * len(values) * 2.3e-16
    if not sound or values[-1] < least or values[0] <= 0:
        assert all(math.isnan(value) for value in found.values()), (values, found)
        return
    shares = exact_shares([max(value, 0.0) for value in values])
    entropy = -sum(float(share) * math.log(share) for share in shares if share > 1e-300)
    close(found["rankme"], math.exp(entropy))
    close(found["rankme_garrido"], math.exp(entropy))
    close(found["participation_ratio"], float(1 / sum(share * share for share in shares)))
    close(found["stable_rank"], float(1 / shares[0]))
    close(found["top1"], float(shares[0]))
    if len(values) >= 3:
        check_alpha(values)


def check_alpha(values: list[float]) -> None:
    alpha, r2 = metrics.alpha_req(values, (1, 3))
    edge = values[0] * (len(values) * 2.0**-52)
    if values[2] == pytest.approx(edge, rel=1e-9):
        return
    if values[2] <= edge:
        assert math.isnan(alpha)
        assert math.isnan(r2)
        return
    line = np.polyfit(np.log([1, 2, 3]), np.log(values[:3]), 1, w=np.sqrt([1, 1 / 2, 1 / 3]))
    assert float(alpha) == pytest.approx(-line[0], rel=1e-7, abs=1e-9)
    assert math.isnan(r2) or r2 <= 1 + 1e-9


@SIZES
def test_spectra(tally: Callable[..., None], count: int) -> None:
    survive(tally, "hostile metrics", SPECTRA, check_spectrum, count)


ARGUMENTS: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([2, 3, np.int64(3), np.float64(11.5), 11.5, 10**40, math.inf, 1 + 2j, torch.tensor(3), 5e-324]),
)
THINGS = st.one_of(ARGUMENTS, st.lists(ARGUMENTS, max_size=4), st.tuples(ARGUMENTS, ARGUMENTS))


def check_arguments(drawn: tuple[Any, Any, str]) -> None:
    first, second, which = drawn
    spectrum = [4.0, 2.0, 1.0, 0.5]
    calls: dict[str, tuple[Callable[[], Any], str]] = {
        "spectrum": (lambda: metrics.rankme(first), "spectrum"),
        "window": (lambda: metrics.check_window((first, second)), "alpha_window"),
        "whole window": (lambda: metrics.check_window(first), "alpha_window"),
        "top": (lambda: metrics.rankme(spectrum, 0.0, first), "top"),
        "k": (lambda: metrics.top_share(spectrum, first), "k="),
        "eps": (lambda: metrics.rankme(spectrum, first), "eps"),
    }
    call, name = calls[which]
    try:
        value = call()
    except ValueError as error:
        refused(error, name)
        return
    if "window" in which:
        given = first if which == "whole window" else (first, second)
        low, high = (int(part) for part in given)
        assert value == (low, high) == tuple(given)
        assert 1 <= low <= high - 2
    elif which == "spectrum":
        assert value.ndim == 0
    else:
        assert math.isfinite(value)


@SIZES
def test_arguments(tally: Callable[..., None], count: int) -> None:
    names = st.sampled_from(["spectrum", "window", "whole window", "top", "k", "eps"])
    survive(tally, "hostile metrics", st.tuples(THINGS, ARGUMENTS, names), check_arguments, count)


DTYPES = {torch.float64: 140, torch.float32: 37, torch.bfloat16: 37, torch.float16: 4}  # and the largest power of ten


def check_rows(drawn: tuple[int, int, int, torch.dtype, int, str]) -> None:
    """Against NumPy's singular values of the rows in units of their largest."""
    seed, n, d, dtype, power, kind = drawn
    generator = np.random.default_rng(seed)
    unit = generator.normal(size=(n, d)) * 1.5 ** -np.arange(d)
    rows = torch.tensor(unit * 10.0 ** max(-DTYPES[dtype], min(power, DTYPES[dtype])), dtype=dtype)
    if kind == "equal":
        rows = rows[:1].expand(n, d).contiguous()
    elif kind == "infinite":
        rows[seed % n, seed % d] = (math.nan, math.inf, -math.inf)[seed % 3]
    try:
        whole = Moments(d)
        for part in rows.split(3):
            whole.update(part)
        spectra = [spectrum_of_rows(rows), spectrum_of(whole)]
    except ValueError as error:
        assert kind == "infinite"
        refused(error, "finite")
        return
    assert kind != "infinite"
    for found in spectra:
        values, reasons = metrics.describe(found, (1, min(n - 1, d) if min(n - 1, d) > 2 else 3))
        largest = float(rows.double().abs().max())
        wide = rows.double().numpy() / (largest or 1.0)
        if n == 1 or kind == "equal" or largest == 0 or np.ptp(wide, 0).max() == 0:
            assert set(values.values()) == {None}
            assert set(reasons) == set(metrics.METRIC_NAMES)
            continue
        share = np.linalg.svd(wide - wide.mean(0), compute_uv=False) ** 2
        share = share[share > 0] / share.sum()
        assert values["rankme"] == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)
        assert values["top1_share"] == pytest.approx(share[0], rel=1e-6)
        assert values["participation_ratio"] == pytest.approx(1 / (share**2).sum(), rel=1e-6)
        assert all(value is None or math.isfinite(value) for value in values.values())
        assert {name for name, value in values.items() if value is None} == set(reasons)


@SIZES
def test_rows(tally: Callable[..., None], count: int) -> None:
    kinds = st.sampled_from(["usual", "usual", "equal", "infinite"])
    size = st.integers(1, 9)
    drawn = st.tuples(st.integers(0, 10**6), size, size, st.sampled_from(list(DTYPES)), st.integers(-150, 150), kinds)
    survive(tally, "hostile metrics", drawn, check_rows, count)


@pytest.mark.parametrize(
    "rows",
    [torch.ones(5), torch.ones(0, 3), torch.ones(5, 0), torch.ones(5, 3).long(), torch.ones(5, 3) * 1j,
     torch.full((5, 3), 1e160, dtype=torch.float64) * torch.randn(5, 3, dtype=torch.float64)],
)  # fmt: skip
def test_rows_that_are_no_features_are_named(tally: Callable[..., None], rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"rows_nd of shape|float64 does not hold"):
        spectrum_of_rows(rows)
    tally("hostile metrics")


CURVES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 5000), st.sampled_from([0, 0.5, 1e300, 5e-324, -1, math.nan, math.inf, 10**400])),
        st.one_of(st.floats(0.01, 1e4), st.sampled_from([None, 3.0, math.nan, math.inf, 1e308, 5e-324, 0, -1])),
        st.one_of(st.floats(-5, 5), st.sampled_from([None, math.nan, math.inf, 1e308, -1e308, 0.0])),
    ),
    max_size=30,
)


def check_curve(curve: list[tuple[Any, Any, Any]]) -> None:
    steps, rankme, alpha = ([point[part] for point in curve] for part in range(3))
    try:
        phases = find_phases(steps, rankme, alpha)
    except ValueError as error:
        refused(error, "steps hold", "RankMe is positive")
        bad_step = any(not 0 <= step < 1.79e308 or 0 < step < 1e-300 for step in steps)
        assert bad_step or any(value is not None and value <= 0 for value in rankme)
        return
    known = {step: value for step, value in zip(steps, rankme, strict=True) if value and abs(value) < math.inf}
    for phase in phases:
        assert phase.start < phase.end
        assert known[phase.start] == phase.rankme_start
        assert known[phase.end] == phase.rankme_end
    for before, after in pairwise(phases):
        assert before.end == after.start
    assert not phases or len(known) >= 6


@SIZES
def test_curves(tally: Callable[..., None], count: int) -> None:
    survive(tally, "hostile curve", CURVES, check_curve, count // 3)


WORDS = st.lists(st.text("ab \n\0é", max_size=8), max_size=5)
LITTLE = st.integers(-2, 12)


def check_counts(drawn: tuple[int, int, int, list[str], list[float]]) -> None:
    samples, correct, k, texts, numbers = drawn
    try:
        found = pass_at_k(samples, correct, k)
    except ValueError as error:
        assert k < 1 or k > samples or not 0 <= correct <= samples
        refused(error, "k=", "correct=")
    else:
        missed = Fraction(math.comb(samples - correct, k), math.comb(samples, k))
        assert found == pytest.approx(float(1 - missed), abs=1e-12)
    for function in (lambda: distinct_n(texts, k), lambda: distinct_answers(texts), lambda: answer_entropy(texts)):
        try:
            value = function()
        except ValueError as error:
            assert not texts or k < 1
            refused(error, "texts", "answers", "n=")
        else:
            longest = max(len(text.split()) for text in texts)
            assert 0 <= value <= math.log(max(len(texts), 3)) + 1e-9 or (math.isnan(value) and longest < k)
    try:
        rho = spearman(numbers, numbers[::-1])
    except ValueError as error:
        assert len(numbers) < 2
        refused(error, "pairs")
    else:
        none = len(set(numbers)) < 2 or any(map(math.isnan, numbers))
        assert math.isnan(rho) if none else -1 <= rho <= 1


@SIZES
def test_counts_and_texts(tally: Callable[..., None], count: int) -> None:
    drawn = st.tuples(LITTLE, LITTLE, LITTLE, WORDS, st.lists(NUMBERS, max_size=6))
    survive(tally, "hostile metrics", drawn, check_counts, count)
