"""All metrics of a spectrum: as one tensor, and as values with the reason for each that is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from geomcallbacks.metrics import (
    METRIC_NAMES,
    alpha_req,
    numerical_rank,
    participation_ratio,
    rankme,
    rankme_garrido,
    stable_rank,
    top_share,
)
from geomcallbacks.spectra.spectrum import Spectrum


def describe(spectrum: Spectrum, window: tuple[int, int]) -> tuple[dict[str, float | None], dict[str, str]]:
    """All metrics of a spectrum, with one transfer off the device.

    Returns:
        The value of each of `METRIC_NAMES`, None where there is none, and the reason for each that is missing.
    """
    return explain(summarise(spectrum, window).tolist(), spectrum.n, window)


def summarise(spectrum: Spectrum, window: tuple[int, int]) -> Tensor:
    """The metrics in the order of `METRIC_NAMES` and the numerical rank behind them: (11,) float64, on the device of
    the spectrum, NaN where there is no value. `explain` reads it.
    """
    values = spectrum.eigenvalues
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=values.device)
    if spectrum.n < 2:
        return nothing.repeat(len(METRIC_NAMES) + 1)
    alpha = alpha_req(values, window, spectrum.floor) if window[1] <= len(values) else (nothing, nothing)
    return torch.stack(
        [
            rankme(values),
            rankme_garrido(spectrum.singular_values),
            *alpha,
            participation_ratio(values),
            stable_rank(values),
            top_share(values, 1),
            top_share(values, 10),
            values.sum(),
            spectrum.mean_norm.to(values.device),
            numerical_rank(values, spectrum.floor).to(torch.float64),
        ]
    )


def explain(
    summary: Sequence[float], n: int, window: tuple[int, int]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """What `describe` returns, from the numbers of `summarise` for n rows."""
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


def no_values(reason: str) -> tuple[dict[str, float | None], dict[str, str]]:
    """What `describe` returns where nothing can be said."""
    return dict.fromkeys(METRIC_NAMES), dict.fromkeys(METRIC_NAMES, reason)
