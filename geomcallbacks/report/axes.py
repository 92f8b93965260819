"""What the figures of a report are drawn with: a page of panels over log updates, curves, phases behind them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.phases import Phase
from geomcallbacks.report.data import Point, Run
from geomcallbacks.report.loss import Loss
from geomcallbacks.report.style import COLOURS, GREY, INK, PHASE_INKS, PHASES, SOFT, plain, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches: text stays legible where a phone shows the figure at its width
_CHARACTER = 0.0092  # inches for each point of the font size: the mean width of bold DejaVu Sans, rounded up


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure that is drawn without pyplot, whose backend stays as the caller has it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.06, hspace=0.03)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write PNG or SVG, by the end of the name; the same figure gives the same file."""
    import matplotlib

    kind = Path(path).suffix.lower()
    Path(path).unlink(missing_ok=True)  # never through a link that came with a run's folder
    with matplotlib.rc_context({"svg.hashsalt": "geomcallbacks", "svg.fonttype": "path"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in letters the font lacks: boxes
        figure.savefig(path, dpi=150, metadata={"Date": None} if kind == ".svg" else None)


def footnote(figure: Figure, text: str) -> None:
    """Small print at the foot of a figure; line breaks are the caller's."""
    figure.supxlabel(text, fontsize=7.5, color=SOFT, x=0.01, ha="left")


def log_updates(axis: Axes, runs: Sequence[Run]) -> None:
    """Make x log updates that span all of `runs`, with whole numbers at the ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    first, last = min(run.first for run in runs), max(run.last for run in runs)
    style(axis, first=first, last=last)
    if not any(run.starts for run in runs):
        axis.set_xlim(left=first / 1.15)  # no update 0 to make room for
    close = last / first < 30  # less than one and a half decades: powers of ten alone would be one tick
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if close else (1.0,), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(which="minor", color=GREY)


def short(count: float) -> str:
    """A count of updates for a tick: 1, 10, 1,000, 100k, 1M."""
    if count >= 1e6:
        return f"{count / 1e6:g}M"
    return f"{count / 1e3:g}k" if count >= 1e5 else f"{count:,g}"


def updates_label(run: Run | None) -> str:
    """Name of the x axis; with the tokens of an update where the records know them and they stay the same."""
    rates = {row["tokens"] / row["step"] for row in run.curve() if row.get("tokens") and row["step"]} if run else set()
    if rates and max(rates) - min(rates) < 1e-6 * max(rates):
        return f"optimiser updates, of {max(rates):,.0f} tokens each"
    return "optimiser updates"


def draw_points(
    axis: Axes, points: Sequence[Point], colour: str, label: str | None = None, band: float = 0.16, **line: Any
) -> None:
    """Draw a curve, with its intervals as a band of opacity `band`. Update 0 is an open circle at the left edge."""
    if not points:
        return
    later = [point for point in points if point.step > 0]
    edge = axis.get_xlim()[0] * 1.15
    look: dict[str, Any] = {"linewidth": 1.7, "marker": "o", "markersize": 2.1, "linestyle": "-"} | line
    if later:
        axis.plot(*zip(*((p.step, p.value) for p in later), strict=True), color=colour, label=label, **look)
    if points[0].step == 0:
        start: dict[str, Any] = dict(
            marker="o", markersize=5.5, markerfacecolor="white", color=colour, linestyle="none"
        )
        axis.plot([edge], [points[0].value], label=None if later else label, **start)
        if later:
            joined = [points[0].value, later[0].value]
            axis.plot([edge, later[0].step], joined, color=colour, linewidth=1.0, linestyle=":")
    spans = [(max(p.step, edge), p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if spans:
        steps, low, high = zip(*spans, strict=True)
        axis.fill_between(steps, low, high, color=colour, alpha=band, linewidth=0)


def draw_loss(axis: Axes, loss: Loss, colour: str = COLOURS["loss"], label: str | None = None) -> None:
    """Draw the logged losses thinly, and their mean within each tenth of a decade: single batches are noisy."""
    if not loss:
        return
    bins: dict[int, Loss] = {}
    for update, value in loss:
        bins.setdefault(int(10 * math.log10(max(1, update))), []).append((update, value))
    means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in bins.values()]
    axis.plot(*zip(*loss, strict=True), color=colour, linewidth=0.5, alpha=0.3)
    axis.plot(*zip(*means, strict=True), color=colour, linewidth=1.7, label=label)


def shade_phases(axes: Sequence[Axes], phases: Sequence[Phase]) -> None:
    """Colour what lies behind the curves by phase, a thin line at each boundary."""
    for axis in axes:
        left, right = axis.get_xlim()
        for k, phase in enumerate(phases):
            start = left if k == 0 else phase.start
            end = right if k == len(phases) - 1 else phase.end
            axis.axvspan(start, end, color=PHASES[phase.name], zorder=-2, linewidth=0)
            if k:
                axis.axvline(phase.start, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.55, zorder=-1)


def name_phases(axis: Axes, phases: Sequence[Phase], width: float) -> None:
    """Write the phases' names above the bands of an axis that is `width` inches wide.

    They are moved aside where they would meet; if all do not fit, they are smaller and broken at the hyphen.
    """
    if not phases:
        return
    left, right = (math.log(edge) for edge in axis.get_xlim())
    cuts = [left, *(math.log(max(phase.start, 1e-9)) for phase in phases[1:]), right]
    centres = [(a + b) / 2 for a, b in pairwise(cuts)]
    names, size = [phase.name for phase in phases], 9.0
    if sum(map(len, names)) * size * _CHARACTER > 0.94 * width:
        names, size = [name.replace("-", "-\n") for name in names], 7.0
    long = [max(map(len, name.split("\n"))) * size * _CHARACTER / width + 0.015 for name in names]
    places = spread([(centre - left) / (right - left) for centre in centres], long)
    for place, name, phase in zip(places, names, phases, strict=True):
        above(axis, place, name, color=PHASE_INKS[phase.name], fontsize=size, ha="center")


def phase_bar(axis: Axes, place: float, phases: Sequence[Phase]) -> None:
    """A bar across an axis at the height `place`, in the colours of the phases."""
    left, right = axis.get_xlim()
    for k, phase in enumerate(phases):
        start = left if k == 0 else phase.start
        end = right if k == len(phases) - 1 else phase.end
        axis.barh(place, end - start, left=start, height=0.78, color=PHASES[phase.name], linewidth=0)


def phase_legend(axis: Axes, names: Collection[str]) -> None:
    """The names of these phases above an axis, in their colours, wherever the phases themselves stand."""
    for place, name in zip((0.0, 0.2, 0.48), PHASES, strict=True):
        if name in names:
            above(axis, place, name, color=PHASE_INKS[name], fontsize=9, ha="left")


def above(axis: Axes, place: float, text: str, **options: Any) -> None:
    """Write a little above an axis, at a share of its width."""
    options |= {"xycoords": "axes fraction", "textcoords": "offset points", "va": "baseline"}
    axis.annotate(text, (place, 1.0), xytext=(0, 5), fontweight="bold", linespacing=0.95, **options)


def spread(centres: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Centres of labels on [0, 1], moved as little as a sweep from either side needs so that none meets the next."""
    places = list(centres)
    end = 0.0
    for k, width in enumerate(widths):
        places[k] = max(places[k], end + width / 2)
        end = places[k] + width / 2
    start = 1.0
    for k in range(len(widths) - 1, -1, -1):
        places[k] = min(places[k], start - widths[k] / 2)
        start = places[k] - widths[k] / 2
    return places


def outlined(width: float = 2.2) -> dict[str, Any]:
    """Options of a text that stays legible on lines: a white outline."""
    from matplotlib.patheffects import withStroke

    return {"path_effects": [withStroke(linewidth=width, foreground="white", alpha=0.85)]}


def legend(axis: Axes, columns: int = 1, **where: Any) -> None:
    """A legend without a frame, if the axis has anything to name."""
    if axis.get_legend_handles_labels()[1]:
        options = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handlelength": 1.6} | where
        axis.legend(ncols=columns, **options)


def heading(figure: Figure, text: str) -> None:
    """Title above a figure, at its left."""
    figure.suptitle(plain(text, 90), x=0.012, ha="left", fontsize=11.5, color=INK)
