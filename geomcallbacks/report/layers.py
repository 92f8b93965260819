"""The figure of the layers: phases, RankMe and α of each over the same log updates."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geomcallbacks.report.axes import panels
from geomcallbacks.report.bands import name_phases, phase_bar, phase_legend
from geomcallbacks.report.run import Run
from geomcallbacks.report.style import INK, SOFT, Look, digits, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layers(run: Run, path: Path) -> bool:
    """Draw phases, RankMe and α of every layer; return False where only one was measured."""
    if len(run.layers) < 2:
        return False
    probe = f", probe {run.probes[0]}" if len(run.probes) > 1 else ""
    edge = " Left edge: update 0." if 0 in run.steps else ""
    note = f"Colour: value over the layer’s own maximum, which stands at the right.{edge}"
    heights = [max(1.2, 0.2 * len(run.layers))] * 3
    with panels(path, f"{run.name}: every layer{probe}", heights, runs=[run], note=note) as axes:
        for axis, label in zip(axes, ("phases", "RankMe", "α"), strict=True):
            axis.grid(False)
            axis.set_yticks(range(len(run.layers)), [plain(layer, 24) for layer in run.layers], fontsize=8)
            axis.set_ylim(-0.5, len(run.layers) - 0.5)
            axis.set_ylabel(label, color=INK)
        _draw_phases(axes[0], run)
        _draw_heat(axes[1], run, "rankme")
        _draw_heat(axes[2], run, "alpha_req")
        colours = axes[1].collections[0]  # the same from 0 to 1 in every row
        shape: Look = {"aspect": 30, "shrink": 0.5, "anchor": (0, 0.2)}
        bar = axes[0].figure.colorbar(colours, ax=axes, pad=0.06, ticks=[0, 0.5, 1], **shape)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=SOFT)
    return True


def _draw_phases(axis: Axes, run: Run) -> None:
    """A bar for each layer, with the interval of each boundary."""
    by_layer = [run.phases_of(layer=layer) for layer in run.layers]
    for place, phases in enumerate(by_layer):
        phase_bar(axis, place, phases)
        for phase in phases[1:]:
            ends = phase.start_interval or (phase.start, phase.start)
            axis.plot(ends, [place] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
            axis.plot([phase.start], [place], "|", color=INK, markersize=6)
    if len({tuple(phase.name for phase in phases) for phases in by_layer}) == 1 and by_layer[0]:
        name_phases(axis, by_layer[-1], width=5.0)
    else:  # no place above is right for all layers
        phase_legend(axis, {phase.name for phases in by_layer for phase in phases})


def _draw_heat(axis: Axes, run: Run, name: str) -> None:
    """A row of colours for each layer, a measurement as wide as the way to its neighbours."""
    left, right = axis.get_xlim()
    for place, layer in enumerate(run.layers):
        points = run.metric(name, layer=layer)
        if not points:
            continue
        steps = [math.log(max(point.step, left)) for point in points]
        edges = [left, *(math.exp((a + b) / 2) for a, b in pairwise(steps)), right]
        values = np.array([[point.value for point in points]])
        top = float(values.max())
        options: Look = dict(cmap="viridis", vmin=0.0, vmax=1.0, shading="flat", rasterized=True)
        axis.pcolormesh(edges, [place - 0.5, place + 0.5], values / top if top > 0 else values, **options)
        where: Look = {"xycoords": axis.get_yaxis_transform(), "va": "center"}
        axis.annotate(digits(top), (1.008, place), fontsize=7.5, color=SOFT, **where)
