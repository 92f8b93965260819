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
_RANKMES = {"uncentred": dict(color=COLOURS["rankme"]), "centred": dict(color=GREY, linestyle="--")}
_NOTE = (
    "Columns: the model, its four controls, and the model from independent normal entries. Paths and singular values:"
    " seed 0, open marks at update 0 (d = 3: projected on the two largest directions of the last features).\n"
    "RankMe: all seeds; the axis is stretched towards d, so that falls of some thousandths show."
)
_NOTE_LARGE = " Bottom row: 1,024 classes, d = 32, all seeds."


def draw(paths: Sequence[tuple[Setting, Paths]], large: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw a column for each setting; beneath, the rows of large models, where there are any."""
    labels = ["features and weights", "singular values of the features", "RankMe"]
    labels += ["RankMe, |V| = 1,024, d = 32"] if large else []
    rows = len(labels)
    figure = Figure(figsize=(18.0, 4.0 + 3.1 * (rows - 1)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(paths), squeeze=False, height_ratios=(1.25, *[1] * (rows - 1)))
    for axis in axes.flat:
        style(axis)
    for axis in axes[1:].flat:
        axis.set_xscale("log")
    for axis in axes[2:].flat:
        axis.set_xlabel("updates", color=INK)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, color=INK)
    for column, (setting, course) in zip(axes.T, paths, strict=True):
        _paths(column[0], setting, course)
        _singular_values(column[1], setting, course)
        _rankme(column[2], setting, course)
    for axis, row in zip(axes[-1], large, strict=False):
        _large(axis, row)
    _legends(axes)
    figure.align_ylabels(axes[:, 0])
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.07)
    figure.suptitle("The bottleneck model: logits W f, features free", x=0.01, ha="left", fontsize=15, color=INK)
    figure.supxlabel(_NOTE + (_NOTE_LARGE if large else ""), x=0.01, ha="left", fontsize=9.5, color=SOFT)
    figure.savefig(file, dpi=110)


def _paths(axis: Axes, setting: Setting, paths: Paths) -> None:
    """Draw where features (lines) and weights (dashed) went."""
    features, weights = paths.features[:, 0], paths.weights[:, 0]
    if setting.d > 2:
        plane = torch.linalg.svd(features[-1], full_matrices=False).Vh[:2].T
        features, weights = features @ plane, weights @ plane
    for index, label in enumerate(setting.labels.tolist()):
        _path(axis, features[:, index], SERIES[label], "o", linewidth=1.1)
    for label in range(len(setting.counts)):
        _path(axis, weights[:, label], SERIES[label], "D", linewidth=1.4, linestyle=(0, (3, 2)))
    axis.set_title(setting.name, loc="left", fontsize=11.5, color=INK, pad=8)
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(0.08)


def _path(axis: Axes, points_t2: torch.Tensor, colour: str, marker: str, **line: Any) -> None:
    axis.plot(*points_t2.T, color=colour, alpha=0.75, **line)
    axis.plot(*points_t2[0], marker, markersize=4, markerfacecolor="white", color=colour)
    axis.plot(*points_t2[-1], marker, markersize=4.5, color=colour)


def _singular_values(axis: Axes, setting: Setting, paths: Paths) -> None:
    values = singular_values(paths.features, centred=False)[1:, 0]
    for rank, colour in zip(range(setting.d), _SIGMAS, strict=False):
        axis.plot(range(1, len(values) + 1), values[:, rank], color=colour, linewidth=1.8)
    axis.set_ylim(bottom=0)


def _rankme(axis: Axes, setting: Setting, paths: Paths) -> None:
    for kind in ("centred", "uncentred"):
        lacking_st = setting.d - torch.tensor(rankme_curves(paths.features, kind == "centred"))[:, 1:]
        alpha = 0.8 if setting.seeds < 10 else 0.45
        axis.plot(range(1, lacking_st.shape[1] + 1), lacking_st.T, linewidth=1.0, alpha=alpha, **_RANKMES[kind])
    axis.set_yscale("log")
    axis.set_ylim(setting.d - 0.98, 5e-5)
    ticks = [1.0, 0.5, 0.1, 0.01, 0.001, 0.0001]
    axis.set_yticks(ticks, [f"{setting.d - tick:.5g}" for tick in ticks])
    axis.minorticks_off()


def _large(axis: Axes, row: Mapping[str, Any]) -> None:
    for curve in row["curves"]:
        for key, kind in (("rankme", "centred"), ("rankme_uncentred", "uncentred")):
            axis.plot(curve["step"][1:], curve[key][1:], linewidth=1.2, **_RANKMES[kind])
    axis.set_ylim(0, 34)
    axis.set_title(row["name"], loc="left", fontsize=11, color=INK, pad=6)


def _legends(axes: Any) -> None:
    paths = {
        "feature f": dict(color=INK, marker="o", markersize=4.5, linewidth=1.1),
        "weight W": dict(color=INK, marker="D", markersize=4.5, linewidth=1.4, linestyle=(0, (3, 2))),
    }
    ranks = {name: dict(color=colour) for name, colour in zip(("σ₁", "σ₂", "σ₃"), _SIGMAS, strict=True)}
    two = {name: ranks[name] for name in ("σ₁", "σ₂")}
    places = ((0, 0, "lower right"), (1, 0, "upper left"), (1, 2, "upper left"), (2, 0, "lower right"))
    for (row, column, place), lines in zip(places, (paths, two, ranks, _RANKMES), strict=True):
        handles = [Line2D([], [], **line) for line in lines.values()]
        axes[row, column].legend(handles, list(lines), loc=place, frameon=False, fontsize=8.5, labelcolor=SOFT)
