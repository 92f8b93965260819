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

from geomcallbacks.report.analysis import MEMORISATION
from geomcallbacks.report.axes import (
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
from geomcallbacks.report.data import Point, Run, number, turning_points
from geomcallbacks.report.style import COLOURS, GREY, GRID, INK, PEAK, SERIES, SOFT, TROUGH, digits, plain, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 60
_MOST_COLUMNS = 4
_LONGEST_LABEL = 24
#: Numbers that another figure shows.
_INTERVENTION = re.compile(r"(intervention[^/]*)/(?:(full)|((?:keep|remove)_\w+)_(\d+))")
_ELSEWHERE = re.compile(rf"{MEMORISATION}$|.*/accuracy$|primacy/band_|{_INTERVENTION.pattern}$")
_KINDS = {"top": COLOURS["rankme"], "bottom": TROUGH, "random": GREY}
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
    """Accuracy by number of eigendirections kept or removed, at the last update where it was measured."""
    found = [(run, match[1]) for run in runs for key in run.keys if (match := _INTERVENTION.fullmatch(key))]
    if not found:
        return False
    sets = list(dict.fromkeys(name for _, name in found))
    shown = [run for run in runs if any(other is run for other, _ in found)][:_MOST_COLUMNS]
    figure = new_figure(2.1 * len(sets) + 1.5)
    axes = figure.subplots(len(sets), len(shown), sharex=True, sharey="row", squeeze=False)
    for row, name in zip(axes, sets, strict=True):
        for axis, run in zip(row, shown, strict=True):
            _intervention_panel(axis, run, name)
    for row, name in zip(axes, sets, strict=True):
        questions = name.removeprefix("intervention").strip("_").replace("_", " ")
        row[0].set_ylabel(plain(questions or "accuracy", 30))
    for axis in axes[-1]:
        axis.set_xlabel("directions", color=INK)
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.35 * (high - low))  # room for the legend
    axes[0, -1].legend(loc="upper center", fontsize=7.5 if len(shown) < 3 else 6, frameon=False, ncols=3)
    heading(figure, "Multiple-choice accuracy with eigendirections kept or removed")
    footnote(figure, "Bars: 95 % intervals. Dashed line: nothing removed. At the last update where it was measured.")
    save(figure, path)
    return True


def _intervention_panel(axis: Axes, run: Run, name: str) -> None:
    """One set of questions, one run: a line for each kind of intervention over the numbers of directions."""
    style(axis, grid="y")
    lines: dict[str, list[tuple[int, Point]]] = {}
    for key in run.keys:
        match = _INTERVENTION.fullmatch(key)
        points = run.number(key) if match is not None and match[1] == name else []
        if match is not None and points:
            lines.setdefault(match[2] or match[3], []).append((int(match[4] or 0), points[-1]))
    ks = sorted({k for line in lines.values() for k, _ in line if k})
    steps = {point.step for line in lines.values() for _, point in line}
    for _, point in lines.pop("full", []):
        axis.axhline(point.value, color=INK, linewidth=1.0, linestyle="--", alpha=0.7)
    for index, (kind, line) in enumerate(sorted(lines.items())):
        action, _, which = kind.partition("_")
        shift = 0.05 * (index - (len(lines) - 1) / 2)
        places = [ks.index(k) + shift for k, _ in sorted(line, key=lambda pair: pair[0])]
        points = [point for _, point in sorted(line, key=lambda pair: pair[0])]
        colour, dashes = _KINDS.get(which, SOFT), "-" if action == "keep" else ":"
        values = [point.value for point in points]
        axis.plot(places, values, dashes, marker="o", markersize=3, color=colour, label=kind.replace("_", " "))
        for place, point in zip(places, points, strict=True):
            if point.low is not None and point.high is not None:
                axis.plot([place] * 2, [point.low, point.high], color=colour, linewidth=0.9)
    axis.set_xticks(range(len(ks)), [f"{k:,}" for k in ks])
    when = f"update {steps.pop():,}" if len(steps) == 1 else ""
    axis.set_title(plain(f"{run.name}, {when}".strip(", "), 44), loc="left", fontsize=9, color=INK)


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
