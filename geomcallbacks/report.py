"""The figure of a run: loss, RankMe, α and the share of the first eigenvalue over the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GREY, _TROUGH, _PEAK = "#1f2933", "#9aa5b1", "#c8553d", "#2a7f62"
_COLOURS = {"loss": "#52606d", "rankme": "#1c5d99", "alpha_req": "#8f4ba8", "top1_share": "#b8860b"}


def turning_points(rankme: Sequence[float]) -> tuple[int, int]:
    """Where RankMe is lowest, and where it is highest from there on.

    Args:
        rankme: values in the order of the updates, at least one.

    Returns:
        Indices of trough and peak; the same index where the curve ends in its lowest value.

    Raises:
        ValueError: there are no values.
    """
    if not rankme:
        raise ValueError("rankme is empty: give the values of at least one measurement")
    trough = min(range(len(rankme)), key=rankme.__getitem__)
    peak = max(range(trough, len(rankme)), key=rankme.__getitem__)
    return trough, peak


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """One line of measured numbers: RankMe at the first update, trough, peak and last, and α beside it.

    Raises:
        ValueError: no record has a RankMe, or they are of more than one probe or layer.
    """
    rows = _one_curve(records)
    trough, peak = turning_points([row["rankme"] for row in rows])
    marks = {"start": rows[0], "trough": rows[trough], "peak": rows[peak], "end": rows[-1]}
    curve = " → ".join(f"{row['rankme']:.1f} ({name}, update {row['step']:,})" for name, row in marks.items())
    alphas = [row["alpha_req"] for row in marks.values()]
    shown = " → ".join("–" if alpha is None else f"{alpha:.2f}" for alpha in alphas)
    return f"RankMe {curve}; α {shown}"


def plot_run(
    records: Sequence[Mapping[str, Any]],
    loss: Sequence[tuple[int, float]],
    path: str | Path,
    title: str | None = None,
) -> None:
    """Draw loss, RankMe, α and top1_share against log updates, with trough and peak of RankMe marked.

    Update 0 has no logarithm: its values stand as open circles at the left edge, joined by a dotted line.

    Args:
        records: what `read_records` returns, of one probe and one layer.
        loss: (updates, training loss) in order; may be empty.
        path: the PNG to write; its folder must exist.
        title: line above the figure. None: the probe's n and d.

    Raises:
        ValueError: no record has a RankMe, or they are of more than one probe or layer.
    """
    rows = _one_curve(records)
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # imported late; leaves pyplot's backend alone
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 8.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1.7, 1, 1))
    last = max([row["step"] for row in rows] + [update for update, _ in loss])
    for axis in axes:
        _style(axis, last)
    _draw_loss(axes[0], loss)
    low, high = rows[0]["alpha_window"]
    for axis, (name, label) in zip(
        axes[1:],
        {"rankme": "RankMe", "alpha_req": f"α, ranks {low}–{high}", "top1_share": "λ₁ / Σλ"}.items(),
        strict=True,
    ):
        _draw_metric(axis, rows, name)
        axis.set_ylabel(label)
    _mark_turning_points(axes, rows)
    axes[-1].set_xlabel("optimiser updates")
    first = rows[0]
    heading = title or f"Geometry of {first['layer']}: n = {first['n']:,} probe positions, d = {first['d']}"
    axes[0].set_title(heading, loc="left", fontsize=12, color=_INK, pad=10)
    convention = (
        "λ: eigenvalues of the centred covariance of the probe's hidden states; "
        "RankMe = exp(entropy of λ/Σλ) (Li et al. 2025);\n"
        f"α: −slope of ln λ over ln rank, ranks {low}–{high}, weights 1/rank (α-ReQ); "
        f"positions = {first['positions']}; open circle: update 0."
    )
    figure.supxlabel(convention, fontsize=7.5, color="#616e7c", x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def _one_curve(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    curves = sorted({(str(row["probe"]), str(row["layer"])) for row in records})
    if len(curves) > 1:
        raise ValueError(f"records hold the curves {curves} (probe, layer): select the rows of one of them")
    rows = sorted((row for row in records if row.get("rankme") is not None), key=lambda row: int(row["step"]))
    if not rows:
        raise ValueError("records hold no value of rankme: see their `reasons`")
    return rows


def _style(axis: Axes, last: int) -> None:
    axis.set_xscale("log")
    axis.set_xlim(0.5, last * 1.25)
    axis.grid(True, which="major", color="#e4e7eb", linewidth=0.8)
    axis.tick_params(colors="#52606d", labelsize=9)
    axis.yaxis.label.set_color(_INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(_GREY)


def _draw_loss(axis: Axes, loss: Sequence[tuple[int, float]]) -> None:
    axis.set_ylabel("training loss")
    if not loss:
        return
    updates, values = zip(*loss, strict=True)
    # Single batches are noisy: the line is the mean of the logged losses within each tenth of a decade.
    bins: dict[int, list[tuple[int, float]]] = {}
    for update, value in loss:
        bins.setdefault(int(10 * math.log10(max(1, update))), []).append((update, value))
    means = [tuple(sum(c) / len(group) for c in zip(*group, strict=True)) for group in bins.values()]
    axis.plot(updates, values, color=_COLOURS["loss"], linewidth=0.5, alpha=0.3)
    axis.plot(*zip(*means, strict=True), color=_COLOURS["loss"], linewidth=1.8)


def _draw_metric(axis: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    points = [(int(row["step"]), float(row[name])) for row in rows if row[name] is not None]
    colour = _COLOURS[name]
    later = [point for point in points if point[0] > 0]
    if later:
        axis.plot(*zip(*later, strict=True), color=colour, linewidth=1.8, marker="o", markersize=2.6)
    if points and points[0][0] == 0:
        edge = (axis.get_xlim()[0] * 1.15, points[0][1])
        axis.plot(*edge, marker="o", markersize=6, markerfacecolor="white", color=colour, linestyle="none")
        if later:
            axis.plot(*zip(edge, later[0], strict=True), color=colour, linewidth=1.0, linestyle=":")


def _mark_turning_points(axes: Sequence[Axes], rows: Sequence[Mapping[str, Any]]) -> None:
    trough, peak = turning_points([row["rankme"] for row in rows])
    axes[1].set_ylim(0, max(row["rankme"] for row in rows) * 1.25)
    low, high = axes[1].get_xlim()
    for name, index, colour, height in (("trough", trough, _TROUGH, -3), ("peak", peak, _PEAK, 10)):
        step, value = int(rows[index]["step"]), float(rows[index]["rankme"])
        if step == 0 or (name == "peak" and peak == trough):  # nothing that turned
            continue
        for axis in axes:
            axis.axvline(step, color=colour, linewidth=1.0, linestyle="--", alpha=0.7, zorder=0)
        on_left = math.log(step / low) > 0.4 * math.log(high / low)  # room for the label
        axes[1].annotate(
            f"{name} {value:.1f}, update {step:,}",
            (step, value),
            xytext=(-8 if on_left else 8, height),
            textcoords="offset points",
            ha="right" if on_left else "left",
            color=colour,
            fontsize=9,
            fontweight="bold",
        )
