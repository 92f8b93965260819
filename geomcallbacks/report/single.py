"""The figure of a single curve, and its turning points in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.report.axes import draw_loss, draw_points, footnote, new_figure, save
from geomcallbacks.report.data import Point, turning_points
from geomcallbacks.report.style import COLOURS, INK, PEAK, TROUGH, plain, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    figure = new_figure(8.6, width=8.0)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1.7, 1, 1))
    last = max([row["step"] for row in rows] + [update for update, _ in loss])
    for axis in axes:
        style(axis, last=last)
    axes[0].set_ylabel("training loss")
    draw_loss(axes[0], list(loss))
    low, high = rows[0]["alpha_window"]
    for axis, (name, label) in zip(
        axes[1:],
        {"rankme": "RankMe", "alpha_req": f"α, ranks {low}–{high}", "top1_share": "λ₁ / Σλ"}.items(),
        strict=True,
    ):
        points = [Point(int(row["step"]), float(row[name])) for row in rows if row[name] is not None]
        draw_points(axis, points, COLOURS[name], linewidth=1.8, markersize=2.6)
        axis.set_ylabel(label)
    _mark_turning_points(axes, rows)
    axes[-1].set_xlabel("optimiser updates")
    first = rows[0]
    heading = title or f"Geometry of {first['layer']}: n = {first['n']:,} probe positions, d = {first['d']}"
    axes[0].set_title(plain(heading), loc="left", fontsize=12, color=INK, pad=10)
    convention = (
        "λ: eigenvalues of the centred covariance of the probe's hidden states; "
        "RankMe = exp(entropy of λ/Σλ) (Li et al. 2025);\n"
        f"α: −slope of ln λ over ln rank, ranks {low}–{high}, weights 1/rank (α-ReQ); "
        f"positions = {first['positions']}; open circle: update 0."
    )
    footnote(figure, convention)
    save(figure, path)


def _one_curve(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    curves = sorted({(str(row["probe"]), str(row["layer"])) for row in records})
    if len(curves) > 1:
        raise ValueError(f"records hold the curves {curves} (probe, layer): select the rows of one of them")
    rows = sorted((row for row in records if row.get("rankme") is not None), key=lambda row: int(row["step"]))
    if not rows:
        raise ValueError("records hold no value of rankme: see their `reasons`")
    return rows


def _mark_turning_points(axes: Sequence[Axes], rows: Sequence[Mapping[str, Any]]) -> None:
    trough, peak = turning_points([row["rankme"] for row in rows])
    axes[1].set_ylim(0, max(row["rankme"] for row in rows) * 1.25)
    low, high = axes[1].get_xlim()
    for name, index, colour, height in (("trough", trough, TROUGH, -3), ("peak", peak, PEAK, 10)):
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
