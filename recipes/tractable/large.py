"""The same model beyond the paper: more than a thousand classes, 16 to 64 dimensions, frequencies after Zipf.

Two kinds of target. *One class*: every sample has a free feature row and one label, as in the paper; samples of a
class start together, so that they stay together and one row stands for them all, with their number as its weight.
*Distribution*: every row is a context with its own distribution over the next class, which a latent space of more
dimensions than the model has and of falling strength gives; the loss then has a finite optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor

from geomcallbacks.metrics import rankme

LATENT = 64  # dimensions of the space that distributions come from
PER_DECADE = 16


@dataclass(frozen=True)
class Large:
    """One training of the large model.

    Attributes:
        name: what tables and figure call it.
        targets: "one class" of a sample, or the "distribution" of a context.
        classes: |V|.
        contexts: rows of distributions; of "one class" there is one row a class.
        d: width.
        skew: exponent of the class frequencies, i^−skew; 0 makes them equal.
        decay: of the latent dimensions' strengths, i^−decay.
        strength: standard deviation of the logits that they give.
        tokens: the distribution is what so many draws from it give; 0: itself.
        optimiser: "GD" or "Adam" (AdamW with torch's defaults).
        rate: learning rate; of GD on the sum over samples, not on their mean.
        cosine: the rate falls to a tenth along a cosine.
        batch: samples an update, with labels drawn anew each time; 0: everything at once, without noise.
        weight_decay: share of rate by which features and weights shrink an update.
        scale: root mean square norm of a feature or weight row at the start, whose entries are independent normal.
        steps: updates.
        seeds: how many, from 0.
    """

    name: str
    targets: Literal["one class", "distribution"] = "one class"
    classes: int = 1024
    contexts: int = 512
    d: int = 32
    skew: float = 1.0
    decay: float = 1.0
    strength: float = 4.0
    tokens: int = 0
    optimiser: Literal["GD", "Adam"] = "GD"
    rate: float = 0.05
    cosine: bool = False
    batch: int = 0
    weight_decay: float = 0.0
    scale: float = 0.1
    steps: int = 200
    seeds: int = 3


@dataclass(frozen=True)
class Task:
    """Rows to learn: target distributions (n, v), and the samples that each row stands for (n,)."""

    target_nv: Tensor
    copies_n: Tensor

    @cached_property
    def share_n(self) -> Tensor:
        """(n,) share of the samples that each row stands for."""
        return (self.copies_n / self.copies_n.sum()).double()

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return rows and labels (b,) of random samples."""
        row_b = torch.multinomial(self.copies_n, samples, replacement=True, generator=generator)
        below_bv = self.target_nv[row_b].cumsum(-1)
        label_b = torch.searchsorted(below_bv, torch.rand(samples, 1, generator=generator))[:, 0]
        return row_b, label_b.clamp_max(below_bv.shape[1] - 1)  # the last sum may round to less than 1


def train_large(setting: Large, seed: int) -> list[dict[str, float]]:
    """Train one seed.

    Returns:
        A row for each measured update, 16 a decade: `step` and what `measure` gives.

    Raises:
        ValueError: training diverged.
    """
    generator = torch.Generator().manual_seed(seed)
    task = make_task(setting, generator)
    parameters = start_large(setting, len(task.target_nv), generator)
    kind = torch.optim.AdamW if setting.optimiser == "Adam" else torch.optim.SGD
    optimiser = kind(parameters, lr=setting.rate, weight_decay=setting.weight_decay)
    rows = []
    for step in range(setting.steps + 1):
        if step in _due(setting.steps):
            if not all(bool(values.isfinite().all()) for values in parameters):
                raise ValueError(f"{setting.name!r} diverged before update {step}: rate={setting.rate} is too high")
            rows.append({"step": step, **measure(*parameters, task)})
        if setting.cosine:
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * step / setting.steps))
            optimiser.param_groups[0]["lr"] = setting.rate * share
        for values, slope in zip(parameters, slopes(setting, *parameters, task, generator), strict=True):
            values.grad = slope
        optimiser.step()
    return rows


def start_large(setting: Large, rows: int, generator: torch.Generator) -> list[Tensor]:
    """Return features (rows, d) and weights (v, d) at update 0."""
    deviation = setting.scale / math.sqrt(setting.d)
    return [deviation * torch.randn(count, setting.d, generator=generator) for count in (rows, setting.classes)]


def make_task(setting: Large, generator: torch.Generator) -> Task:
    """Return what is to be learned."""
    rank_v = torch.arange(1, setting.classes + 1, dtype=torch.float32)
    if setting.targets == "one class":
        copies = (setting.classes / rank_v).pow(setting.skew).round().clamp_min(1)
        if setting.skew == 0:  # as many samples as Zipf's frequencies would give
            copies = torch.full_like(copies, float((setting.classes / rank_v).round().mean().round()))
        return Task(torch.eye(setting.classes), copies)
    falling = torch.arange(1, LATENT + 1, dtype=torch.float32).pow(-setting.decay)
    falling *= setting.strength / falling.norm()
    contexts = torch.randn(setting.contexts, LATENT, generator=generator) * falling
    logits_nv = contexts @ torch.randn(setting.classes, LATENT, generator=generator).T - setting.skew * rank_v.log()
    target_nv = logits_nv.softmax(-1)
    if setting.tokens:
        drawn = torch.multinomial(target_nv, setting.tokens, replacement=True, generator=generator)
        target_nv = torch.zeros_like(target_nv).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / setting.tokens))
    return Task(target_nv, torch.ones(setting.contexts))


def slopes(
    setting: Large, features: Tensor, weights: Tensor, task: Task, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return gradients of the loss, summed over samples, by a sample's feature (n, d) and by the weights (v, d)."""
    if not setting.batch:
        error_nv = torch.softmax(features @ weights.T, -1).sub_(task.target_nv)
        return error_nv @ weights, error_nv.mul_(task.copies_n[:, None]).T @ features
    row_b, label_b = task.draw(setting.batch, generator)
    error_bv = torch.softmax(features[row_b] @ weights.T, -1)
    error_bv[torch.arange(len(label_b)), label_b] -= 1
    error_bv *= task.copies_n.sum() / setting.batch
    by_feature = torch.zeros_like(features).index_add_(0, row_b, error_bv @ weights)
    return by_feature / task.copies_n[:, None], error_bv.T @ features[row_b]


def measure(features: Tensor, weights: Tensor, task: Task) -> dict[str, float]:
    """Return loss and RankMe over every sample.

    Returns:
        `loss` (nats), its lowest possible value `floor` (the mean entropy of the targets), `rankme` of the centred
        features, `rankme_uncentred`, and `rankme_weights`, centred over classes.
    """
    losses_n = (features @ weights.T).logsumexp(-1) - (task.target_nv @ weights * features).sum(-1)
    entropies_n = -torch.special.xlogy(task.target_nv, task.target_nv).sum(-1)
    rows = features.double()
    moment_dd, mean = rows.T @ (rows * task.share_n[:, None]), task.share_n @ rows
    moments = {
        "rankme": moment_dd - mean.outer(mean),
        "rankme_uncentred": moment_dd,
        "rankme_weights": torch.cov(weights.double().T, correction=0),
    }
    ranks = {key: rankme(torch.linalg.eigvalsh(moment).flip(0).clamp_min(0)) for key, moment in moments.items()}
    values = {"loss": task.share_n @ losses_n.double(), "floor": task.share_n @ entropies_n.double(), **ranks}
    return {key: float(value) for key, value in values.items()}


@cache
def _due(steps: int) -> set[int]:
    decades = math.log10(max(steps, 1))
    return {0, steps} | {round(10 ** (i / PER_DECADE)) for i in range(int(PER_DECADE * decades) + 1)}
