"""bottleneck.png: paths, singular values and RankMe of the bottleneck model and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from geomcallbacks.report.style import COLOURS, GREY, INK, SERIES, SOFT, style
from tractable.model import Paths, Setting, rankme_curves, singular_values

_SIGMAS = (INK, SERIES[4], GREY)
#: What the row of large models shows: settings of softmax_bottleneck.py by name, under these titles.
_LARGE = {
    "one class, Zipf, GD": "one class a sample,\nZipf, GD",
    "one class, uniform, GD": "one class a sample,\nuniform, GD",
    "one class, Zipf, Adam": "one class a sample,\nZipf, Adam",
    "distributions, Zipf, GD": "distributions,\nZipf, GD",
    "distributions, Zipf, Adam": "distributions,\nZipf, Adam",
    "batches of 128, Adam, cosine": "distributions in batches,\nAdam, cosine",
}


def draw(numbers: Mapping[str, Any], settings: Sequence[Setting], paths: Mapping[str, Paths], path: Path) -> None:
    """Draws a column for each setting; beneath, the large models, where there are any."""
    rows = 4 if numbers["large"] else 3
    figure = Figure(figsize=(18.0, 4.0 + 3.1 * (rows - 1)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(settings), height_ratios=(1.25, *[1] * (rows - 1)))
    for column, setting in enumerate(settings):
        _paths(axes[0, column], setting, paths[setting.name])
        _singular_values(axes[1, column], setting, paths[setting.name])
        _rankme(axes[2, column], setting, paths[setting.name])
    for axis, label in zip(
        axes[:3, 0], ("features and weights", "singular values of the features", "RankMe"), strict=True
    ):
        axis.set_ylabel(label, color=INK)
    _legends(axes)
    if rows == 4:
        _large(axes[3], {row["name"]: row for row in numbers["large"]})
    figure.align_ylabels(axes[:, 0])
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.07)
    figure.suptitle("The bottleneck model: logits W f, features free", x=0.01, ha="left", fontsize=15, color=INK)
    figure.supxlabel(_NOTE + (_NOTE_LARGE if rows == 4 else ""), x=0.01, ha="left", fontsize=9.5, color=SOFT)
    figure.savefig(path, dpi=110)


_NOTE = (
    "Columns: the model, its four controls, and the model from independent normal entries. Paths and singular values:"
    " seed 0, open marks at update 0 (d = 3: projected on the two largest directions of the last features).\n"
    "RankMe: all seeds; the axis is stretched towards d, so that falls of some thousandths show."
)
_NOTE_LARGE = " Bottom row: 1,024 classes, d = 32, all seeds."


def _paths(axis: Axes, setting: Setting, paths: Paths) -> None:
    """Draws where features (lines) and weights (dashed) went."""
    features, weights = paths.features[:, 0], paths.weights[:, 0]
    if setting.d > 2:
        plane = torch.linalg.svd(features[-1], full_matrices=False).Vh[:2].T
        features, weights = features @ plane, weights @ plane
    for index, label in enumerate(setting.labels.tolist()):
        _path(axis, features[:, index], SERIES[label], marker="o", linewidth=1.1)
    for label in range(len(setting.counts)):
        _path(axis, weights[:, label], SERIES[label], marker="D", linewidth=1.4, linestyle=(0, (3, 2)))
    style(axis)
    axis.set_title(setting.name, loc="left", fontsize=11.5, color=INK, pad=8)
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(0.08)


def _path(axis: Axes, points: torch.Tensor, colour: str, marker: str, **line: Any) -> None:
    x, y = points[:, 0].tolist(), points[:, 1].tolist()
    axis.plot(x, y, color=colour, alpha=0.75, **line)
    axis.plot(x[0], y[0], marker=marker, markersize=4, markerfacecolor="white", color=colour, linestyle="none")
    axis.plot(x[-1], y[-1], marker=marker, markersize=4.5, color=colour, linestyle="none")


def _singular_values(axis: Axes, setting: Setting, paths: Paths) -> None:
    values = singular_values(paths.features, centred=False)[1:, 0]
    for rank, colour in zip(range(setting.d), _SIGMAS, strict=False):
        axis.plot(range(1, len(values) + 1), values[:, rank].tolist(), color=colour, linewidth=1.8)
    style(axis)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)


def _rankme(axis: Axes, setting: Setting, paths: Paths) -> None:
    thin = dict(linewidth=1.0, alpha=0.8 if setting.seeds < 10 else 0.45)
    for centred, colour, line in ((True, GREY, "--"), (False, COLOURS["rankme"], "-")):
        for curve in rankme_curves(paths.features, centred):
            axis.plot(range(1, len(curve)), [setting.d - value for value in curve[1:]], line, color=colour, **thin)
    style(axis)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(setting.d - 0.98, 5e-5)
    ticks = [1.0, 0.5, 0.1, 0.01, 0.001, 0.0001]
    axis.set_yticks(ticks, [f"{setting.d - tick:.5g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("updates", color=INK)


def _large(axes: Sequence[Axes], rows: Mapping[str, Mapping[str, Any]]) -> None:
    for axis, (name, title) in zip(axes, _LARGE.items(), strict=True):
        for curve in rows[name]["curves"]:
            for key, colour, line in (("rankme", GREY, "--"), ("rankme_uncentred", COLOURS["rankme"], "-")):
                axis.plot(curve["step"][1:], curve[key][1:], line, color=colour, linewidth=1.2)
        style(axis)
        axis.set_xscale("log")
        axis.set_ylim(0, 34)
        axis.set_title(title, loc="left", fontsize=11, color=INK, pad=6)
        axis.set_xlabel("updates", color=INK)
    axes[0].set_ylabel("RankMe, |V| = 1,024, d = 32", color=INK)


def _legends(axes: Any) -> None:
    small = dict(frameon=False, fontsize=8.5, labelcolor=SOFT)
    paths = [
        Line2D([], [], color=INK, marker="o", markersize=4.5, linewidth=1.1),
        Line2D([], [], color=INK, marker="D", markersize=4.5, linewidth=1.4, linestyle=(0, (3, 2))),
    ]
    axes[0, 0].legend(paths, ["feature f", "weight W"], loc="lower right", **small)
    ranks = [Line2D([], [], color=colour, linewidth=1.8) for colour in _SIGMAS]
    axes[1, 0].legend(ranks[:2], ["σ₁", "σ₂"], loc="upper left", **small)
    axes[1, 2].legend(ranks, ["σ₁", "σ₂", "σ₃"], loc="upper left", **small)
    kinds = [
        Line2D([], [], color=COLOURS["rankme"], linewidth=1.4),
        Line2D([], [], color=GREY, linewidth=1.4, linestyle="--"),
    ]
    axes[2, 0].legend(kinds, ["uncentred", "centred"], loc="lower right", **small)
