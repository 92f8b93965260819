"""Selection: which singular values of the features grow, between the spectra that a run has kept.

The theory of Li et al. 2025 (arXiv 2509.23024) has dσᵢ ∝ σᵢ: what is large grows most. Growth that is exactly
proportional leaves every share of the spectrum, and so RankMe, as it was. Whether the head grows by more or by less
than its share is what separates compression from expansion, so both are measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomcallbacks.metrics import numerical_rank
from geomcallbacks.record import read_records, read_spectra


@dataclass(frozen=True)
class Growth:
    """How singular values grew from one kept spectrum to the next.

    They are matched by rank: σᵢ is the i-th largest at either time, whichever direction it then belongs to.

    Attributes:
        step_from, step_to: updates that the two sets of weights have received.
        sigma: (r,) σᵢ = √λᵢ of the centred covariance at `step_from`, descending: singular values of the centred
            features over √(n − 1). Only those that stand above round-off in both spectra.
        delta: (r,) Δσᵢ per update.
        slope: of the line through the origin, Δσᵢ = slope · σᵢ, by least squares: the common rate of growth per update.
        r2: share of ΣΔσᵢ² that this line explains, Δσ and the line both taken from zero: 1 where growth is
            proportional.
        correlation: Pearson's, of Δσᵢ with σᵢ: above 0 where what is large grows more.
        excess: slope of ln σᵢ(to)/σᵢ(from) on ln σᵢ(from) by least squares. 0: proportional growth, RankMe stays. Above
            0: the head outgrows its share, which compresses. Below 0: the tail does, which expands.
    """

    step_from: int
    step_to: int
    sigma: Tensor
    delta: Tensor
    slope: float
    r2: float
    correlation: float
    excess: float


def growth(eigenvalues_from: Tensor, eigenvalues_to: Tensor, step_from: int, step_to: int) -> Growth:
    """Growth between two spectra.

    Args:
        eigenvalues_from: (r,) descending eigenvalues of the centred covariance.
        eigenvalues_to: (r,) the same later, of the same probe.
        step_from: update of the first.
        step_to: update of the second.

    Returns:
        See `Growth`. A fit that the numbers do not allow (all σ equal, nothing grew) is NaN.

    Raises:
        ValueError: the spectra differ in length or have fewer than three values above round-off, or the updates do
            not ascend.
    """
    if step_to <= step_from:
        raise ValueError(f"step_to={step_to} is not after step_from={step_from}: give the earlier spectrum first")
    if eigenvalues_from.shape != eigenvalues_to.shape or eigenvalues_from.ndim != 1:
        shapes = f"{tuple(eigenvalues_from.shape)} and {tuple(eigenvalues_to.shape)}"
        raise ValueError(f"spectra of shape {shapes} are not of one probe: give two of the same length")
    start, end = eigenvalues_from.double().cpu(), eigenvalues_to.double().cpu()
    # Spectra are kept in float32: below its resolution of the largest nothing is known.
    floors = [float(values[0]) * torch.finfo(torch.float32).eps for values in (start, end)]
    ranks = [int(numerical_rank(values, floor)) for values, floor in zip((start, end), floors, strict=True)]
    if min(ranks) < 3:
        raise ValueError(
            f"the spectra of updates {step_from} and {step_to} have {ranks[0]} and {ranks[1]} eigenvalues above"
            " round-off: a line takes three"
        )
    sigma, later = start[: min(ranks)].sqrt(), end[: min(ranks)].sqrt()
    delta = (later - sigma) / (step_to - step_from)
    slope = float((sigma * delta).sum() / sigma.square().sum())
    left, whole = float((delta - slope * sigma).square().sum()), float(delta.square().sum())
    return Growth(
        step_from=step_from,
        step_to=step_to,
        sigma=sigma,
        delta=delta,
        slope=slope,
        r2=1 - left / whole if whole else math.nan,
        correlation=_correlation(sigma, delta),
        excess=_slope(sigma.log(), (later / sigma).log()),
    )


def selection(path: str | Path, probe: str | None = None, layer: str | None = None) -> list[Growth]:
    """Growth between each kept spectrum of a run and the next.

    Args:
        path: the record file of a run with `spectra=True`.
        probe: label of the probe, where the file holds several.
        layer: label of the layer, likewise.

    Raises:
        ValueError: fewer than two spectra were kept, or they are of more than one probe or layer.
    """
    rows = _one_curve(path, read_records(path), probe, layer)
    spectra = [(int(row["step"]), read_spectra(path, row)) for row in rows]
    return [growth(before, after, step_from, step_to) for (step_from, before), (step_to, after) in pairwise(spectra)]


def _one_curve(
    path: str | Path, records: Sequence[Mapping[str, Any]], probe: str | None, layer: str | None
) -> list[Mapping[str, Any]]:
    """The records with a spectrum of one probe and layer, one for each update, in order."""
    kept = [
        row
        for row in records
        if row.get("spectrum")
        and row["rankme"] is not None
        and probe in (None, row["probe"])
        and layer in (None, row["layer"])
    ]
    curves = sorted({(row["probe"], row["layer"]) for row in kept})
    if len(curves) > 1:
        raise ValueError(f"{path} holds several curves, (probe, layer) in {curves}: name one with probe= and layer=")
    by_step = {int(row["step"]): row for row in kept}
    if len(by_step) < 2:
        raise ValueError(
            f"{path} keeps {len(by_step)} spectra of probe={probe!r}, layer={layer!r}: growth needs two; run with"
            " spectra=True, or name another"
        )
    return [by_step[step] for step in sorted(by_step)]


def _slope(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    whole = float(x.square().sum())
    return float((x * y).sum()) / whole if whole else math.nan


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    whole = float(x.norm() * y.norm())
    return float((x * y).sum()) / whole if whole else math.nan
