"""The other figures of a report: layers, eigenspectra, probes, frequency bands, interventions, further numbers.

Each `draw_…` takes a run, or several, and the file to write, and returns False where they have nothing of the kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geomcallbacks.figure_style import COLOURS, GRID, INK, PEAK, SERIES, SOFT, TROUGH, digits, plain, style
from geomcallbacks.report_analysis import MEMORISATION
from geomcallbacks.report_axes import (
    WIDTH,
    draw_points,
    footnote,
    heading,
    legend,
    log_updates,
    name_phases,
    new_figure,
    phase_bar,
    phase_legend,
    save,
    shade_phases,
    updates_label,
)
from geomcallbacks.report_data import Run, number, turning_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 60
_LONGEST_LABEL = 24
#: Numbers that another figure shows.
_ELSEWHERE = re.compile(rf"{MEMORISATION}$|.*/accuracy$|primacy/band_|intervention/")
_ROUND_OFF = 1e-10  # of the first eigenvalue: a direction that is not there, such as the sum of a LayerNorm


def draw_layers(run: Run, path: Path) -> bool:
    """Phases, RankMe and α of every layer over log updates; False where only one was measured."""
    if len(run.layers) < 2:
        return False
    tall = max(1.2, 0.2 * len(run.layers))
    figure = new_figure(3 * tall + 1.8)
    axes = figure.subplots(3, 1, sharex=True)
    for axis in axes:
        log_updates(axis, [run])
        axis.grid(False)
        axis.set_yticks(range(len(run.layers)), [plain(layer, _LONGEST_LABEL) for layer in run.layers], fontsize=8)
        axis.set_ylim(-0.5, len(run.layers) - 0.5)
    _phases_by_layer(axes[0], run)
    drawn = None
    for axis, (name, label) in zip(axes[1:], {"rankme": "RankMe", "alpha_req": "α"}.items(), strict=True):
        drawn = _heat(axis, run, name, label) or drawn
    axes[-1].set_xlabel(updates_label(run), color=INK)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(axes), pad=0.06, aspect=30, shrink=0.5, anchor=(0, 0.2), ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=SOFT)
    heading(figure, f"{run.name}: every layer" + (f", probe {run.probes[0]}" if len(run.probes) > 1 else ""))
    footnote(
        figure,
        "Colour: value over the layer’s own maximum, which stands at the right." + " Left edge: update 0." * run.starts,
    )
    save(figure, path)
    return True


def draw_spectra(run: Run, path: Path) -> bool:
    """Eigenspectra at the start, trough, peak and end of RankMe; False where none were kept."""
    rows = [row for row in run.curve() if number(row.get("rankme")) is not None and run.spectrum(row)]
    if not rows:
        return False
    figure = new_figure(4.4)
    axis = figure.subplots()
    style(axis)
    trough, peak = turning_points([row["rankme"] for row in rows])
    # The turning points are those of the kept spectra; a place that is also an end of the curve is shown once.
    marks = {
        0: ("start", SOFT),
        trough: ("trough", TROUGH),
        peak: ("peak", PEAK),
        len(rows) - 1: ("end", COLOURS["rankme"]),
    }
    for index, (name, colour) in sorted(marks.items()):
        row = rows[index]
        values = np.asarray(run.spectrum(row), dtype=np.float64)
        share = values[values > _ROUND_OFF * values.max()] / values.sum()
        alpha = number(row.get("alpha_req"))
        text = f"{name}, update {row['step']:,}: RankMe {digits(row['rankme'])}" + (
            "" if alpha is None else f", α {alpha:.2f}"
        )
        line = dict(marker="o", markersize=2.6) if len(share) <= 64 else {}
        axis.loglog(range(1, len(share) + 1), share, color=colour, linewidth=1.6, label=text, **line)
    low, high = rows[-1]["alpha_window"]
    axis.axvspan(low, high, color=GRID, alpha=0.6, zorder=-2, linewidth=0)
    axis.set_xlabel("rank of the eigenvalue", color=INK)
    axis.set_ylabel("λ / Σλ", color=INK)
    _plain_ranks(axis)
    legend(axis, loc="lower left")
    heading(figure, f"{run.name}: eigenspectra of {rows[0]['layer']}")
    where = f"Grey: ranks {low}–{high}, over which α is fitted. Not shown: λ < {_ROUND_OFF:g} λ₁."
    footnote(figure, f"λ: eigenvalues of the centred covariance of the probe’s hidden states.\n{where}")
    save(figure, path)
    return True


def draw_probes(run: Run, path: Path) -> bool:
    """RankMe and α of each probe at the last layer; False where there is only one."""
    if len(run.probes) < 2:
        return False
    figure = new_figure(5.0)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    for axis, (name, label) in zip(axes, {"rankme": "RankMe", "alpha_req": "α"}.items(), strict=True):
        log_updates(axis, [run])
        for index, probe in enumerate(run.probes):
            rows = run.curve(probe)
            shown = plain(probe, 40) + (f", n = {rows[-1]['n']:,}" if rows else "")
            draw_points(axis, run.metric(name, probe), SERIES[index % len(SERIES)], shown)
        axis.set_ylabel(label, color=INK)
    shade_phases(axes, run.phases)
    name_phases(axes[0], run.phases, WIDTH - 0.8)
    legend(axes[0], loc="best")
    axes[-1].set_xlabel(updates_label(run), color=INK)
    heading(figure, f"{run.name}: probes at {run.layers[-1]}")
    footnote(figure, f"Phases: of the probe {plain(run.probes[0], 40)}.")
    save(figure, path)
    return True


def draw_primacy(run: Run, path: Path) -> bool:
    """Loss in each band of token frequency; False where it was not measured."""
    bands = sorted((key for key in run.keys if key.startswith("primacy/band_")), key=lambda key: (len(key), key))
    if not bands:
        return False
    from matplotlib import colormaps

    figure = new_figure(3.9)
    axis = figure.subplots()
    log_updates(axis, [run])
    colours: Any = colormaps["viridis"](np.linspace(0.0, 0.85, len(bands)))
    for index, (key, colour) in enumerate(zip(bands, colours, strict=True)):
        band = plain(key.removeprefix("primacy/band_"), 20)
        rare = " (rarest)" if index == len(bands) - 1 else ""
        draw_points(axis, run.number(key), colour, f"{band} (most frequent)" if index == 0 else band + rare)
    axis.set_ylabel("loss, nats a token", color=INK)
    axis.set_xlabel(updates_label(run), color=INK)
    shade_phases([axis], run.phases)
    name_phases(axis, run.phases, WIDTH - 0.8)
    legend(axis, loc="lower left", title="band of token frequency", title_fontsize=8)
    heading(figure, f"{run.name}: loss by token frequency")
    save(figure, path)
    return True


def draw_intervention(runs: Sequence[Run], path: Path) -> bool:
    """Accuracy with eigendirections kept or removed, at the last update where it was measured."""
    keys = list(dict.fromkeys(key for run in runs for key in run.keys if key.startswith("intervention/")))
    if not keys:
        return False
    figure = new_figure((0.2 + 0.13 * len(runs)) * len(keys) + 1.5)
    axis = figure.subplots()
    style(axis, grid="x")
    axis.set_ylim(len(keys) - 0.4, -0.6)
    steps = set()
    for index, run in enumerate(runs):
        offset = 0.62 * ((index + 0.5) / len(runs) - 0.5)
        colour = COLOURS["rankme"] if len(runs) == 1 else SERIES[index % len(SERIES)]
        for place, key in enumerate(keys):
            if not (points := run.number(key)):
                continue
            point = points[-1]
            steps.add(point.step)
            if point.low is not None and point.high is not None:
                axis.plot([point.low, point.high], [place + offset] * 2, color=colour, linewidth=1.4)
            label = plain(run.name, 40) if place == 0 and len(runs) > 1 else None
            axis.plot([point.value], [place + offset], "o", color=colour, markersize=5, label=label)
            if key == "intervention/full":
                axis.axvline(point.value, color=colour, linewidth=0.9, linestyle="--", alpha=0.6, zorder=0)
    named = [plain(key.partition("/")[2].replace("_", " "), 40) for key in keys]
    axis.set_yticks(range(len(keys)), named)
    axis.set_xlabel("accuracy", color=INK)
    legend(axis, loc="best")
    when = f"update {steps.pop():,}" if len(steps) == 1 else "the last update measured"
    heading(figure, f"Eigendirections kept or removed, {when}")
    footnote(figure, "Bars: 95 % intervals. Dashed: nothing removed.")
    save(figure, path)
    return True


def draw_behaviour(runs: Sequence[Run], path: Path) -> bool:
    """A small panel for each number of behaviour that no other figure shows; False where there is none."""
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.keys) if not _ELSEWHERE.match(key)]
    if not keys:
        return False
    shown = keys[:_MOST_PANELS]
    across = min(2, len(shown))
    deep = math.ceil(len(shown) / across)
    figure = new_figure((1.55 if across == 2 else 2.2) * deep + 1.3)
    axes = figure.subplots(deep, across, sharex=True, squeeze=False)
    for axis, key in zip(axes.flat, shown, strict=False):
        log_updates(axis, runs)
        for index, run in enumerate(runs):
            draw_points(axis, run.number(key), SERIES[index % len(SERIES)], plain(run.name, 30))
        axis.set_title(plain(key, 44), loc="left", fontsize=9, color=INK)
        if len(runs) == 1:
            shade_phases([axis], runs[0].phases)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(shown) - across) : len(shown)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("optimiser updates", color=INK, fontsize=9)
    if len(runs) > 1:
        legend(axes[0, 0], loc="best")
    heading(figure, f"{runs[0].name}: further numbers" if len(runs) == 1 else "Further numbers")
    if len(keys) > len(shown):
        footnote(figure, f"{len(keys) - len(shown)} more are in behaviour.jsonl.")
    save(figure, path)
    return True


def _phases_by_layer(axis: Axes, run: Run) -> None:
    by_layer = [run.phases_of(layer=layer) for layer in run.layers]
    for place, phases in enumerate(by_layer):
        phase_bar(axis, place, phases)
        for phase in phases[1:]:
            axis.plot(
                phase.start_interval or (phase.start, phase.start),
                [place] * 2,
                color=INK,
                linewidth=1.2,
                solid_capstyle="butt",
            )
            axis.plot([phase.start], [place], "|", color=INK, markersize=6)
    if len({tuple(phase.name for phase in phases) for phases in by_layer}) == 1:
        labels = max(len(layer) for layer in run.layers)
        name_phases(axis, by_layer[-1], WIDTH - 1.35 - 0.066 * min(labels, _LONGEST_LABEL))
    else:  # no place above is right for all layers
        phase_legend(axis, {phase.name for phases in by_layer for phase in phases})
    axis.set_ylabel("phases", color=INK)


def _heat(axis: Axes, run: Run, name: str, label: str) -> Any:
    """A row of colours for each layer, a measurement as wide as the way to its neighbours; what a colour bar takes."""
    drawn = None
    left, right = axis.get_xlim()
    for place, layer in enumerate(run.layers):
        points = run.metric(name, layer=layer)
        if not points:
            continue
        steps = [math.log(max(point.step, left)) for point in points]
        middles = [math.exp((a + b) / 2) for a, b in pairwise(steps)]
        edges = [left, *middles, right]
        values = np.array([[point.value for point in points]])
        top = float(values.max())
        options: dict[str, Any] = dict(cmap="viridis", vmin=0.0, vmax=1.0, shading="flat", rasterized=True)
        drawn = axis.pcolormesh(edges, [place - 0.5, place + 0.5], values / top if top > 0 else values, **options)
        axis.annotate(
            digits(top), (1.008, place), xycoords=axis.get_yaxis_transform(), fontsize=7.5, color=SOFT, va="center"
        )
    axis.set_ylabel(label, color=INK)
    return drawn


def _plain_ranks(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if axis.get_xlim()[1] < 300 else (1.0,), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
