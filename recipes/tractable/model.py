"""The tractable model of Li et al. 2025 (arXiv 2509.23024, section 5 and appendix B): free features, few dimensions.

Logits are W f with a feature row f for each sample, free to move (inputs are orthonormal, so a linear map of them can
put each sample anywhere), and full-batch gradient descent moves both. All seeds of a setting move together: tensors
are (s, n, d) features and (s, v, d) weights of s seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from geomcallbacks.metrics import rankme

#: Where the frequent classes stand in the constructed start: length and angle (degrees) of features, length of weights.
CLUSTERS = ((0.6, 100.0, 0.6), (0.75, 2.0, 0.74))
SPREAD = 0.05  # samples of a cluster stand at the two ends of a segment across its direction


@dataclass(frozen=True)
class Setting:
    """One training of the model.

    Attributes:
        name: what tables and figure call it.
        counts: samples of each class.
        d: width of features and weights.
        loss: "cross-entropy" or "squared error", either a mean over samples.
        start: "constructed" as `constructed_start` says, or "random": independent normal entries.
        scale: standard deviation of the random start, or of the jitter of the constructed one.
        rate: learning rate of features and weights.
        steps: updates.
        seeds: how many, from 0.
    """

    name: str
    counts: Sequence[int] = (2, 2, 1, 1)
    d: int = 2
    loss: Literal["cross-entropy", "squared error"] = "cross-entropy"
    start: Literal["constructed", "random"] = "constructed"
    scale: float = 1e-3
    rate: float = 0.25
    steps: int = 1000
    seeds: int = 5

    @property
    def labels(self) -> Tensor:
        """(n,) class of each sample."""
        return torch.repeat_interleave(torch.tensor(self.counts))


@dataclass(frozen=True)
class Paths:
    """Where features (t, s, n, d) and weights (t, s, v, d) were before each update and after the last, float64."""

    features: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Turns:
    """What a curve of RankMe does, with the updates at which it does so.

    Attributes:
        start, end: first and last value.
        dip: lowest value of all; the start where the curve only rises.
        peak: highest value from there on.
        drawdown: from the peak to the lowest value behind it.
        largest_fall: most that the curve ever falls behind the dip, from any value to a later one, whether or not it
            goes on to a higher peak.
    """

    start: float
    dip: float
    dip_step: int
    peak: float
    peak_step: int
    end: float
    drawdown: float
    largest_fall: float


def train(setting: Setting) -> Paths:
    """Train all seeds of a setting."""
    starts = [start_of(setting, seed) for seed in range(setting.seeds)]
    features, weights = (torch.stack(parts) for parts in zip(*starts, strict=True))
    target_nv = torch.eye(len(setting.counts), dtype=torch.float64)[setting.labels]
    kept = [(features, weights)]
    for _ in range(setting.steps):
        output = features @ weights.mT
        if setting.loss == "cross-entropy":
            output = output.softmax(-1)
        slope = (output - target_nv) / len(target_nv)  # of either loss by its output; half the squared error
        features, weights = features - setting.rate * slope @ weights, weights - setting.rate * slope.mT @ features
        kept.append((features, weights))
    return Paths(*(torch.stack(parts) for parts in zip(*kept, strict=True)))


def start_of(setting: Setting, seed: int) -> tuple[Tensor, Tensor]:
    """Return features (n, d) and weights (v, d) at update 0."""
    generator = torch.Generator().manual_seed(seed)
    features, weights = (
        setting.scale * torch.randn(rows, setting.d, generator=generator, dtype=torch.float64)
        for rows in (sum(setting.counts), len(setting.counts))
    )
    if setting.start == "constructed":
        placed = constructed_start(setting)
        features, weights = features + placed[0], weights + placed[1]
    return features, weights


def constructed_start(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the start from which the published figure's course comes out, without its jitter.

    The first two classes are clusters that point almost at right angles, features and weights alike; all others stand
    together in the origin. Neither the paper nor any code of it states a start: this one was fitted to its figure.
    """
    features = torch.zeros(sum(setting.counts), setting.d, dtype=torch.float64)
    weights = torch.zeros(len(setting.counts), setting.d, dtype=torch.float64)
    for index, (length, degrees, weight) in enumerate(CLUSTERS):
        angle = math.radians(degrees)
        along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        across = torch.tensor([-along[1], along[0]], dtype=torch.float64)
        rows = setting.labels == index
        ends = torch.linspace(-SPREAD, SPREAD, int(rows.sum()), dtype=torch.float64)
        features[rows, :2] = length * along + ends[:, None] * across
        weights[index, :2] = weight * along
    return features, weights


def singular_values(features: Tensor, centred: bool) -> Tensor:
    """Return (t, s, min(n, d)) descending singular values of the features, with or without their mean."""
    rows = features - features.mean(-2, keepdim=True) if centred else features
    return torch.linalg.svdvals(rows)


def rankme_curves(features: Tensor, centred: bool) -> list[list[float]]:
    """Return RankMe over the updates for each seed: shares of squared singular values, as of eigenvalues."""
    squared = singular_values(features, centred).square()
    return torch.vmap(rankme)(squared.flatten(0, 1)).view(squared.shape[:2]).T.tolist()


def turns(curve: Sequence[float]) -> Turns:
    """Return what a curve does, a value for each update from 0 on.

    Raises:
        ValueError: there are no values.
    """
    if not curve:
        raise ValueError("curve is empty: give at least one value")
    dip = min(range(len(curve)), key=curve.__getitem__)
    peak = max(range(dip, len(curve)), key=curve.__getitem__)
    falls = (high - value for high, value in zip(accumulate(curve[dip:], max), curve[dip:], strict=True))
    marks = {"start": curve[0], "dip": curve[dip], "dip_step": dip, "peak": curve[peak], "peak_step": peak}
    return Turns(**marks, end=curve[-1], drawdown=curve[peak] - min(curve[peak:]), largest_fall=max(falls))
