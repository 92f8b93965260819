"""The plain figures of a report: probes, loss by token frequency, further numbers of behaviour.

Each `draw_…` takes a run, or several, and the file to write, and returns False where they have nothing of the kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from geomcallbacks.report.analysis import MEMORISATION
from geomcallbacks.report.axes import draw_points, legend, panels
from geomcallbacks.report.bands import shade_phases
from geomcallbacks.report.intervention import INTERVENTION
from geomcallbacks.report.run import Run
from geomcallbacks.report.style import INK, SERIES, Look, plain

#: Numbers that another figure shows.
_ELSEWHERE = re.compile(rf"{MEMORISATION}$|.*/accuracy$|primacy/band_|{INTERVENTION.pattern}$")


def draw_probes(run: Run, path: Path) -> bool:
    """Draw RankMe and α of each probe at the last layer; return False where there is only one."""
    if len(run.probes) < 2:
        return False
    title, note = f"{run.name}: probes at {run.layers[-1]}", f"Phases: of the probe {plain(run.probes[0], 40)}."
    with panels(path, title, [2.1, 1.4], runs=[run], phases=run.phases, note=note) as axes:
        for axis, (name, label) in zip(axes, {"rankme": "RankMe", "alpha_req": "α"}.items(), strict=True):
            for index, probe in enumerate(run.probes):
                size = "".join(f", n = {row['n']:,}" for row in run.curve(probe)[-1:])
                colour = SERIES[index % len(SERIES)]
                draw_points(axis, run.metric(name, probe), colour, plain(probe, 40) + size)
            axis.set_ylabel(label, color=INK)
        legend(axes[0], loc="best")
    return True


def draw_primacy(run: Run, path: Path) -> bool:
    """Draw the loss in each band of token frequency; return False where it was not measured."""
    bands = sorted((key for key in run.keys if key.startswith("primacy/band_")), key=lambda key: (len(key), key))
    if not bands:
        return False
    from matplotlib import colormaps

    with panels(path, f"{run.name}: loss by token frequency", [2.4], runs=[run], phases=run.phases) as (axis,):
        for index, key in enumerate(bands):
            last = index == len(bands) - 1
            which = " (most frequent)" if index == 0 else " (rarest)" if last else ""
            colour = colormaps["viridis"](0.85 * index / max(1, len(bands) - 1))
            draw_points(axis, run.number(key), colour, plain(key.removeprefix("primacy/band_"), 20) + which)
        axis.set_ylabel("loss, nats a token", color=INK)
        legend(axis, loc="lower left", title="band of token frequency", title_fontsize=8)
    return True


def draw_behaviour(runs: Sequence[Run], path: Path) -> bool:
    """Draw a small panel for each number of behaviour that no other figure shows; return False where there is none."""
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.keys) if not _ELSEWHERE.match(key)]
    if not keys:
        return False
    alone, columns = len(runs) == 1, min(2, len(keys))
    grid: Look = {"columns": columns, "count": len(keys), "xlabel": "optimiser updates"}
    title = f"{runs[0].name}: further numbers" if alone else "Further numbers"
    heights = [1.55 if columns == 2 else 2.2] * math.ceil(len(keys) / columns)
    with panels(path, title, heights, runs=runs, **grid) as axes:
        shade_phases(axes, runs[0].phases if alone else ())
        for axis, key in zip(axes, keys, strict=True):
            for index, run in enumerate(runs):
                draw_points(axis, run.number(key), SERIES[index % len(SERIES)], plain(run.name, 30))
            axis.set_title(plain(key, 44), loc="left", fontsize=9, color=INK)
        if not alone:
            legend(axes[0], loc="best")
    return True
