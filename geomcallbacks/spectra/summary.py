"""All metrics of a spectrum: as one tensor, and as values with the reason for each that is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from geomcallbacks import metrics
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.spectra.spectrum import Spectrum

Described = tuple[dict[str, float | None], dict[str, str]]
"""The value of each of `METRIC_NAMES`, None where there is none, and the reason for each that is missing."""


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
        return nothing.repeat(len(METRIC_NAMES) + 1)
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
    """Return what `describe` returns where nothing can be said."""
    return dict.fromkeys(METRIC_NAMES), dict.fromkeys(METRIC_NAMES, reason)
