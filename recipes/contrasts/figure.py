"""contrast.png: geometry, behaviour and overtraining of a contrast, a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from contrasts.table import NAMES
from geomcallbacks.report.style import COLOURS, GREY, INK, PEAK, SOFT, TROUGH, style

_WIDTH = 0.56  # of a start → end pair, in units of the distance between two
_GEOMETRY = {"rankme": "RankMe", "alpha_req": "α, ranks {}", "top1_share": "λ₁ / Σλ"}
_LOSSES = {
    "SFT\nin distr.": ("sft", "behaviour/id/loss"),
    "SFT\nout of distr.": ("sft", "behaviour/ood/loss"),
    "DPO\nout of distr.": ("dpo", "behaviour/ood/loss"),
}
_SHARES = {
    "DPO\npreference\naccuracy": ("dpo", "behaviour/preference/accuracy"),
    "GRPO\nreward": ("grpo", "many/reward"),
    "GRPO\ndistinct\nanswers": ("grpo", "many/distinct_answers"),
}
_OVERTRAINING = {
    "id": ("Overtraining: in-distribution loss after SFT", COLOURS["loss"]),
    "ood": ("Overtraining: out-of-distribution loss after SFT", COLOURS["loss"]),
    "rankme": ("RankMe of the base", COLOURS["rankme"]),
}
_MARKS = {"reproduced": ("✓", PEAK), "opposite": ("×", TROUGH), "inconclusive": ("?", SOFT)}
_NOTE = (
    "Top: general-text probe, in the chain base → SFT → DPO → GRPO. Open circle: first update of a stage; full circle: "
    "last; thin lines: seeds; thick line: their mean.\nMark above a pair: the paper's direction, ✓ reproduced, "
    "× opposite, ? inconclusive (95 % Student t interval over seeds)."
)

Rows = Mapping[tuple[str, str], Mapping[str, Any]]


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """Draw the figure for what `compare.compare` gives."""
    header = numbers["header"]
    figure = Figure(figsize=(12.5, 10.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3)
    rows = {(row["stage"], row["source"]): row for row in (*numbers["statements"], *numbers["shown"])}
    window = "–".join(map(str, header["probe"]["alpha_window"]))
    for axis, (metric, title) in zip(axes[0], _GEOMETRY.items(), strict=True):
        stages = {NAMES[stage]: (stage, f"geometry/general/{metric}") for stage in ("sft", "dpo", "grpo")}
        _pairs(axis, title.format(window), stages, rows, COLOURS[metric])
    _pairs(axes[1, 0], "Loss on instruction pairs", _LOSSES, rows, COLOURS["loss"])
    _pairs(axes[1, 1], "Preference, reward, diversity", _SHARES, rows, COLOURS["loss"])
    _pass_at_k(axes[1, 2], numbers["pass_at_k"].get("grpo"))
    for axis, (key, (title, colour)) in zip(axes[2], _OVERTRAINING.items(), strict=True):
        _overtraining(axis, title, key, colour, list(numbers["overtraining"].values()))
        if row := rows.get(("overtraining", f"{key}/tokens")):
            _mark(axis, 0.5, row, "axes fraction")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    seeds = ", ".join(map(str, header["seeds"]))
    where = ", ".join([*header["devices"], " to ".join(sorted({*header["dates"][:1], *header["dates"][-1:]}))])
    title = f"Post-training contrasts: {header['preset']}, seeds {seeds}; {where}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    figure.supxlabel(_NOTE, x=0.01, ha="left", fontsize=8.5, color=SOFT)
    figure.savefig(path, dpi=130)


def _dress(axis: Axes, title: str) -> None:
    style(axis, grid="y")
    axis.set_title(title, loc="left", fontsize=11, color=INK, pad=8)


def _lines(axis: Axes, x: Any, values_ks: np.ndarray, colour: str, **marker: Any) -> None:
    """Draw a thin line for each seed, a column of the values (k, s), and a thick one for their mean."""
    axis.plot(x, values_ks, color=colour, linewidth=0.9, alpha=0.55)
    middle = np.mean(x, axis=1) if np.ndim(x) == 2 else x
    axis.plot(middle, np.nanmean(values_ks, axis=1), color=colour, linewidth=2.6, **marker)


def _pairs(axis: Axes, title: str, groups: Mapping[str, tuple[str, str]], rows: Rows, colour: str) -> None:
    """Draw start → end of each seed, a group for each number, and the verdict above it."""
    _dress(axis, title)
    for group, key in enumerate(groups.values()):
        row = rows.get(key)
        pairs_2s = np.array([row["starts"], row["ends"]], dtype=float) if row else np.empty((2, 0))
        pairs_2s = pairs_2s[:, np.isfinite(pairs_2s).all(0)]
        if row is None or not pairs_2s.size:
            _not_run(axis, group, "data")
            continue
        sides = (group - _WIDTH / 2, group + _WIDTH / 2)
        _lines(axis, sides, pairs_2s, colour)
        for side, values_s, fill in zip(sides, pairs_2s, ("white", colour), strict=True):
            axis.plot([side] * len(values_s), values_s, "o", markersize=4.5, color=colour, markerfacecolor=fill)
        _mark(axis, group, row, "data")
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_xlim(-0.55, len(groups) - 0.45)
    axis.margins(y=0.08)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.14 * (high - low))  # room for the marks


def _mark(axis: Axes, x: float, row: Mapping[str, Any], coordinates: str) -> None:
    if row["verdict"] in _MARKS:
        sign, colour = _MARKS[row["verdict"]]
        where = dict(xycoords=(coordinates, "axes fraction"), ha="center", va="bottom")
        text = f"{'↑' if row['direction'] > 0 else '↓'} {sign}"
        axis.annotate(text, (x, 0.93), fontsize=11, fontweight="bold", color=colour, **where)


def _not_run(axis: Axes, x: float = 0.5, coordinates: str = "axes fraction") -> None:
    where = dict(xycoords=(coordinates, "axes fraction"), ha="center", va="center")
    axis.annotate("not run", (x, 0.5), fontsize=9, color=GREY, **where)


def _pass_at_k(axis: Axes, curves: Mapping[str, Any] | None) -> None:
    _dress(axis, "pass@k before and after GRPO")
    if not curves or not curves["rows"]:
        _not_run(axis)
        return
    for side, label, colour in (("starts", "before", GREY), ("ends", "after", PEAK)):
        values_ks = np.array([row[side] for row in curves["rows"]], dtype=float)
        _lines(axis, curves["k"], values_ks, colour, marker="o", markersize=4, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(curves["k"], [str(k) for k in curves["k"]])
    axis.set_xlabel("k")
    axis.legend(frameon=False, loc="lower right")


def _overtraining(
    axis: Axes, title: str, key: str, colour: str, seeds: Sequence[Sequence[Mapping[str, float]]]
) -> None:
    _dress(axis, title)
    axis.set_xlabel("tokens of pretraining")
    if not seeds:
        _not_run(axis)
        return
    tokens_ks, values_ks = (np.array([[row[name] for row in rows] for rows in seeds]).T for name in ("tokens", key))
    _lines(axis, tokens_ks, values_ks, colour, marker="o", markersize=4)
    axis.set_xscale("log")
