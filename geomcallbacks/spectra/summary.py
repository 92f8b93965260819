"""What is known of a layer: all metrics of its spectrum, the reason for each that is missing, and intervals.

Numbers of all layers leave the device together. An interval is a grouped jackknife (Tukey 1958; Efron and Tibshirani
1993, chapter 11) rather than a bootstrap: rows drawn with replacement repeat, and repeated rows lower the rank of a
sample whose rank is what is being estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomcallbacks import metrics
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import Spectrum, spectrum_of, spectrum_of_rows
from geomcallbacks.statistics import t_quantile

_SUMMARY = len(METRIC_NAMES) + 1  # numbers of `summarise`
#: Of probe rows, left out in turn.
GROUPS = 20

Described = tuple[dict[str, float | None], dict[str, str]]
"""The value of each of `METRIC_NAMES`, None where there is none, and the reason for each that is missing."""


@dataclass(frozen=True)
class Numbers:
    """What is known of one layer: metrics, reasons where one is missing, intervals, eigenvalues (r,) on the CPU."""

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    eigenvalues: Tensor | None = None


def numbers_of(
    stores: Sequence[Moments | Rows], bad_rows: Sequence[int], *, n: int, window: tuple[int, int], intervals: bool
) -> list[Numbers]:
    """Solve for the spectrum of each layer, and summarise it.

    Args:
        stores: what was gathered of each layer.
        bad_rows: how many of its rows are not finite; a layer that has any gets no value.
        n: rows.
        window: ranks over which α is fitted.
        intervals: whether metrics get intervals; the stores are then `Rows`.
    """
    # Checked before the solve: eigvalsh may return finite numbers for a matrix of NaN.
    spectra = [None if bad else spectrum_of(store) for store, bad in zip(stores, bad_rows, strict=True)]
    parts = [part for one in spectra if one is not None for part in (summarise(one, window), one.eigenvalues)]
    left = torch.cat([part.to(parts[0].device) for part in parts]).cpu() if parts else torch.empty(0, device="cpu")
    found = []
    for store, spectrum, bad in zip(stores, spectra, bad_rows, strict=True):
        if spectrum is None:
            found.append(Numbers(*no_values(f"{bad} of {n} rows are not finite")))
            continue
        ends = [_SUMMARY, _SUMMARY + len(spectrum.eigenvalues)]
        summary, values, left = torch.tensor_split(left, ends)
        spans = jackknife(store, window) if intervals and isinstance(store, Rows) else {}
        found.append(Numbers(*explain(summary.tolist(), n, window), spans, values.clone()))
    return found


def describe(spectrum: Spectrum, window: tuple[int, int]) -> Described:
    """Return all metrics of a spectrum, with one transfer off the device."""
    return explain(summarise(spectrum, window).tolist(), spectrum.n, window)


def summarise(spectrum: Spectrum, window: tuple[int, int]) -> Tensor:
    """Return the metrics in the order of `METRIC_NAMES`, and the numerical rank behind them.

    Returns:
        (11,) float64, on the device of the spectrum, NaN where there is no value. `explain` reads it.
    """
    values = spectrum.eigenvalues
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=values.device)
    if spectrum.n < 2:
        return nothing.repeat(_SUMMARY)
    fits = window[1] <= len(values)
    found = [
        metrics.rankme(values),
        metrics.rankme_garrido(spectrum.singular_values),
        *(metrics.alpha_req(values, window, spectrum.floor) if fits else (nothing, nothing)),
        metrics.participation_ratio(values),
        metrics.stable_rank(values),
        metrics.top_share(values, 1),
        metrics.top_share(values, 10),
        values.sum(),
        spectrum.mean_norm.to(values.device),
        metrics.numerical_rank(values, spectrum.floor).to(torch.float64),
    ]
    return torch.stack(found)


def explain(summary: Sequence[float], n: int, window: tuple[int, int]) -> Described:
    """Return what `describe` returns, from the numbers of `summarise` for n rows."""
    if n < 2:
        return no_values("one row has no covariance")
    found, rank = dict(zip(METRIC_NAMES, summary, strict=False)), summary[-1]
    if found["trace"] == 0.0:
        return no_values("all rows are equal, so the covariance is zero")
    reasons = {}
    if math.isnan(found["alpha_req"]):
        reasons["alpha_req"] = f"ranks {window[0]} to {window[1]} reach past the rank {int(rank)} of the data"
    if math.isnan(found["alpha_req_r2"]):
        reasons["alpha_req_r2"] = reasons.get("alpha_req", "the spectrum is flat over the window")
    return {name: None if math.isnan(value) else value for name, value in found.items()}, reasons


def no_values(reason: str) -> Described:
    """Return what `describe` returns where no metric has a value."""
    return dict.fromkeys(METRIC_NAMES), dict.fromkeys(METRIC_NAMES, reason)


def jackknife(rows: Rows, window: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of the metrics of `rows`, for sampling of probe rows.

    All features of one probe row are left out together, since they are correlated. The interval speaks of the choice
    of texts at this n; it does not correct the bias that a small n gives to every rank.

    Args:
        rows: the features. At least GROUPS distinct probe rows, or there is no interval.
        window: ranks over which α is fitted.

    Returns:
        (low, high) by metric; metrics without a value in any of the groups are left out.
    """
    rows_nd, origin_n = rows.finish()
    if len(set(origin_n.tolist())) < GROUPS:
        return {}
    whole, _ = describe(spectrum_of_rows(rows_nd, rows.eps), window)
    parts = [describe(spectrum_of_rows(rows_nd[origin_n % GROUPS != g], rows.eps), window)[0] for g in range(GROUPS)]
    found = {}
    for name in METRIC_NAMES:
        centre, values = whole[name], [value for part in parts if (value := part[name]) is not None]
        if centre is not None and len(values) == GROUPS:
            mean = sum(values) / GROUPS
            variance = (GROUPS - 1) / GROUPS * sum((value - mean) ** 2 for value in values)
            reach = t_quantile(GROUPS - 1) * math.sqrt(variance)
            found[name] = (centre - reach, centre + reach)
    return found
