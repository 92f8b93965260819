"""A figure of panels over log updates, and the curves in it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.phases import Phase
from geomcallbacks.report.bands import name_phases, shade_phases
from geomcallbacks.report.loss import Loss
from geomcallbacks.report.run import Point, Run
from geomcallbacks.report.style import GREY, INK, SOFT, Look, plain, style
from geomcallbacks.running.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_WIDTH = 7.2  # inches: text stays legible where a phone shows the figure at its width
_AROUND = 1.5  # inches above and below the panels


@contextmanager
def panels(
    path: str | Path,
    title: str,
    heights: Sequence[float],
    *,
    runs: Sequence[Run] = (),
    xlabel: str | None = None,
    columns: int = 1,
    count: int | None = None,
    phases: Sequence[Phase] = (),
    note: str = "",
    **subplots: Any,
) -> Iterator[list[Axes]]:
    """Make a figure, give its panels to draw on, and write it at the end of the block.

    It is drawn without pyplot, whose backend stays as the caller has it. The same figure gives the same file.

    Args:
        path: PNG or SVG, by the end of its name; what stands there is replaced.
        title: line above the figure.
        heights: of each row of panels, in inches.
        runs: make x log updates that span them. None: x is the caller's.
        xlabel: name of x. None: optimiser updates, of so many tokens.
        columns: panels in a row.
        count: panels that are used, where the last row is not full.
        phases: colour what lies behind the panels, and name them above the first.
        note: small print at the foot.
        subplots: what else `Figure.subplots` takes.

    Yields:
        The panels, row by row.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.06, hspace=0.03)
    figure = Figure(figsize=(_WIDTH, sum(heights) + _AROUND), layout=layout, facecolor="white")
    grid = figure.subplots(len(heights), columns, sharex=True, squeeze=False, height_ratios=heights, **subplots)
    axes = list(grid.flat)[:count]
    for axis in grid.flat[len(axes) :]:
        axis.set_visible(False)
    for axis in axes:
        style(axis)
        if runs:
            _log_updates(axis, runs)
    if phases:
        shade_phases(axes, phases)
        name_phases(axes[0], phases, _WIDTH - 0.8)
    yield axes
    for axis in axes[-columns:]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(_updates_label(runs) if xlabel is None else xlabel, color=INK)
    figure.align_ylabels(axes)
    figure.suptitle(plain(title, 90), x=0.012, ha="left", fontsize=11.5, color=INK)
    figure.supxlabel(note, fontsize=7.5, color=SOFT, x=0.01, ha="left")
    _save(figure, Path(path))


def draw_points(
    axis: Axes, points: Sequence[Point], colour: Any, label: str | None = None, band: float = 0.16, **line: Any
) -> None:
    """Draw a curve, with its intervals as a band of opacity `band`. Update 0 is an open circle at the left edge."""
    if not points:
        return
    later = [point for point in points if point.step > 0]
    edge = axis.get_xlim()[0] * 1.15
    look: Look = {"linewidth": 1.7, "marker": "o", "markersize": 2.1, "linestyle": "-"} | line
    if later:
        axis.plot([p.step for p in later], [p.value for p in later], color=colour, label=label, **look)
    if points[0].step == 0:
        ring: Look = {"marker": "o", "markersize": 5.5, "markerfacecolor": "white", "linestyle": "none"}
        axis.plot([edge], [points[0].value], color=colour, label=None if later else label, **ring)
        if later:
            joined = [points[0].value, later[0].value]
            axis.plot([edge, later[0].step], joined, color=colour, linewidth=1.0, linestyle=":")
    spans = [(max(p.step, edge), p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if spans:
        steps, low, high = zip(*spans, strict=True)
        axis.fill_between(steps, low, high, color=colour, alpha=band, linewidth=0)


def draw_loss(axis: Axes, loss: Loss, colour: str) -> None:
    """Draw the logged losses thinly, and their mean within each tenth of a decade: single batches are noisy."""
    if not loss:
        return
    bins: dict[int, Loss] = {}
    for update, value in loss:
        bins.setdefault(int(10 * math.log10(max(1, update))), []).append((update, value))
    means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in bins.values()]
    axis.plot(*zip(*loss, strict=True), color=colour, linewidth=0.5, alpha=0.3)
    axis.plot(*zip(*means, strict=True), color=colour, linewidth=1.7)


def legend(axis: Axes, **options: Any) -> None:
    """Draw a legend without a frame, if the axis has anything to name."""
    if axis.get_legend_handles_labels()[1]:
        axis.legend(**{"frameon": False, "fontsize": 8, "labelcolor": INK, "handlelength": 1.6} | options)


def plain_ticks(side: Axis, close: bool) -> None:
    """Write plain numbers rather than powers of ten at the ticks of a logarithmic x or y.

    Args:
        side: `axis.xaxis` or `axis.yaxis`.
        close: it spans so little that powers of ten alone would be too few ticks.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if close else (1.0,), numticks=12))
    side.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    side.set_minor_formatter(NullFormatter())


def _log_updates(axis: Axes, runs: Sequence[Run]) -> None:
    """Make x log updates that span all of `runs`; the left edge leaves room for update 0, which has no logarithm."""
    steps = set[int]().union(*(run.steps for run in runs))
    first, last = min(steps - {0}, default=1), max(1, *steps)
    axis.set_xscale("log")
    axis.set_xlim(first / 2 if 0 in steps else first / 1.15, last * 1.25)
    plain_ticks(axis.xaxis, close=last / first < 30)
    axis.tick_params(which="minor", color=GREY)


def _short(count: float) -> str:
    """A number for a tick: 0.1, 1, 10, 1,000, 100k, 1M."""
    if count >= 1e6:
        return f"{count / 1e6:g}M"
    return f"{count / 1e3:g}k" if count >= 1e5 else f"{count:,g}"


def _updates_label(runs: Sequence[Run]) -> str:
    """Name of the x axis; with the tokens of an update where the records know them and they stay the same."""
    rows = [row for run in runs for row in run.curve()]
    rates = {row["tokens"] / row["step"] for row in rows if row.get("tokens") and row["step"]}
    if rates and max(rates) - min(rates) < 1e-6 * max(rates):
        return f"optimiser updates, of {max(rates):,.0f} tokens each"
    return "optimiser updates"


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    kind, whole = path.suffix.lower().lstrip(".") or "png", io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "geomcallbacks", "svg.fonttype": "path"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in letters the font lacks: boxes
        figure.savefig(whole, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    replace_file(path, whole.getvalue())
