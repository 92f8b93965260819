"""contrast.png: geometry, behaviour and overtraining of a contrast, a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from contrasts.table import NAMES, mean
from geomcallbacks.report.style import COLOURS, GREY, INK, PEAK, SOFT, TROUGH, style

_WIDTH = 0.56  # of a start → end pair, in units of the distance between two
_GEOMETRY = {"rankme": "RankMe", "alpha_req": "α", "top1_share": "λ₁ / Σλ"}
_LOSSES = (("sft", "behaviour/id/loss"), ("sft", "behaviour/ood/loss"), ("dpo", "behaviour/ood/loss"))
_SHARES = (
    ("dpo", "behaviour/preference/accuracy", "DPO\npreference\naccuracy"),
    ("grpo", "many/reward", "GRPO\nreward"),
    ("grpo", "many/distinct_answers", "GRPO\ndistinct\nanswers"),
)


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """Draws the figure for what `contrast_compare.compare` gives."""
    figure = Figure(figsize=(12.5, 10.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3)
    for axis in axes.flat:
        style(axis, grid="y")
    rows = {(row["stage"], row["source"]): row for row in (*numbers["statements"], *numbers["shown"])}
    window = "–".join(map(str, numbers["header"]["probe"]["alpha_window"]))
    for axis, (metric, label) in zip(axes[0], _GEOMETRY.items(), strict=True):
        pairs = [(NAMES[stage], rows.get((stage, f"geometry/general/{metric}"))) for stage in ("sft", "dpo", "grpo")]
        _pairs(axis, pairs, COLOURS[metric])
        axis.set_title(f"{label}, ranks {window}" if metric == "alpha_req" else label, **_TITLE)
    labels = ("SFT\nin distr.", "SFT\nout of distr.", "DPO\nout of distr.")
    _pairs(axes[1, 0], list(zip(labels, map(rows.get, _LOSSES), strict=True)), COLOURS["loss"])
    axes[1, 0].set_title("Loss on instruction pairs", **_TITLE)
    _pairs(axes[1, 1], [(label, rows.get((stage, source))) for stage, source, label in _SHARES], COLOURS["loss"])
    axes[1, 1].set_title("Preference, reward, diversity", **_TITLE)
    _pass_at_k(axes[1, 2], numbers["pass_at_k"].get("grpo"))
    _overtraining(axes[2], numbers["overtraining"], rows)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    figure.suptitle(_title(numbers["header"]), x=0.01, ha="left", fontsize=13, color=INK)
    figure.supxlabel(_NOTE, x=0.01, ha="left", fontsize=8.5, color=SOFT)
    figure.savefig(path, dpi=130)


_SEED = dict(linewidth=0.9, alpha=0.55)
_TITLE = dict(loc="left", fontsize=11, color=INK, pad=8)
_NOTE = (
    "Top: general-text probe, in the chain base → SFT → DPO → GRPO. Open circle: first update of a stage; full circle: "
    "last; thin lines: seeds; thick line: their mean.\nMark above a pair: the paper's direction, ✓ reproduced, "
    "× opposite, ? inconclusive (95 % Student t interval over seeds)."
)


def _title(header: Mapping[str, Any]) -> str:
    dates = sorted({*header["dates"][:1], *header["dates"][-1:]})
    seeds = ", ".join(map(str, header["seeds"]))
    where = ", ".join([*header["devices"], " to ".join(dates)])
    return f"Post-training contrasts: {header['preset']}, seeds {seeds}; {where}"


def _pairs(axis: Axes, pairs: Sequence[tuple[str, Mapping[str, Any] | None]], colour: str) -> None:
    """Draws start → end of each seed, a group for each number, and the verdict above it."""
    for group, (_, row) in enumerate(pairs):
        if row is None:
            _absent(axis, group)
            continue
        seeds = [pair for pair in zip(row["starts"], row["ends"], strict=True) if None not in pair]
        sides = (group - _WIDTH / 2, group + _WIDTH / 2)
        for pair in seeds:
            axis.plot(sides, pair, color=colour, **_SEED)
            axis.plot(sides[0], pair[0], marker="o", markersize=4.5, color=colour, markerfacecolor="white")
            axis.plot(sides[1], pair[1], marker="o", markersize=4.5, color=colour)
        if seeds:
            axis.plot(sides, [mean([pair[side] for pair in seeds]) for side in (0, 1)], color=colour, linewidth=2.6)
            _mark(axis, group, row)
    axis.set_xticks(range(len(pairs)), [label for label, _ in pairs])
    axis.set_xlim(-0.55, len(pairs) - 0.45)
    axis.margins(y=0.08)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.14 * (high - low))  # room for the marks


def _mark(axis: Axes, x: float, row: Mapping[str, Any], coordinates: str = "data") -> None:
    marks = {"reproduced": ("✓", PEAK), "opposite": ("×", TROUGH), "inconclusive": ("?", SOFT)}
    if row["verdict"] not in marks:
        return
    sign, colour = marks[row["verdict"]]
    text = f"{'↑' if row['direction'] > 0 else '↓'} {sign}"
    where = dict(xycoords=(coordinates, "axes fraction"), ha="center", va="bottom")
    axis.annotate(text, (x, 0.93), fontsize=11, fontweight="bold", color=colour, **where)


def _absent(axis: Axes, group: int) -> None:
    where = dict(xycoords=("data", "axes fraction"), ha="center", va="center")
    axis.annotate("not run", (group, 0.5), fontsize=9, color=GREY, **where)


def _pass_at_k(axis: Axes, curves: Mapping[str, Any] | None) -> None:
    axis.set_title("pass@k before and after GRPO", **_TITLE)
    if not curves or not curves["rows"]:
        axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color=GREY)
        return
    for which, colour in (("starts", GREY), ("ends", PEAK)):
        for index in range(len(curves["rows"][0][which])):
            axis.plot(curves["k"], [row[which][index] for row in curves["rows"]], color=colour, **_SEED)
        means = [mean(row[which]) for row in curves["rows"]]
        axis.plot(curves["k"], means, color=colour, linewidth=2.6, marker="o", markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks(curves["k"], [str(k) for k in curves["k"]])
    axis.set_xlabel("k")
    handles = [Line2D([], [], color=colour, linewidth=2.6) for colour in (GREY, PEAK)]
    axis.legend(handles, ["before", "after"], frameon=False, loc="lower right")


def _overtraining(
    axes: Sequence[Axes],
    by_seed: Mapping[str, Sequence[Mapping[str, float]]],
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
) -> None:
    panels = {
        "id": ("Overtraining: in-distribution loss after SFT", COLOURS["loss"]),
        "ood": ("Overtraining: out-of-distribution loss after SFT", COLOURS["loss"]),
        "rankme": ("RankMe of the base", COLOURS["rankme"]),
    }
    for axis, (key, (title, colour)) in zip(axes, panels.items(), strict=True):
        axis.set_title(title, **_TITLE)
        axis.set_xlabel("tokens of pretraining")
        if not by_seed:
            axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color=GREY)
            continue
        for points in by_seed.values():
            axis.plot([point["tokens"] for point in points], [point[key] for point in points], color=colour, **_SEED)
        ranks = list(zip(*by_seed.values(), strict=True))
        means = [[mean([point[name] for point in rank]) for rank in ranks] for name in ("tokens", key)]
        axis.plot(*means, color=colour, linewidth=2.6, marker="o", markersize=4)
        axis.set_xscale("log")
        if row := rows.get(("overtraining", f"{key}/tokens")):
            _mark(axis, 0.5, row, "axes fraction")
