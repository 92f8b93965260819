"""The figure of the spectral intervention: accuracy by number of eigendirections kept or removed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.report.axes import panels
from geomcallbacks.report.run import Point, Run
from geomcallbacks.report.style import COLOURS, GREY, INK, SOFT, TROUGH, Look, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Keys of an intervention: set of questions; nothing removed, or what was done and to how many directions.
INTERVENTION = re.compile(r"(intervention[^/]*)/(?:(full)|((?:keep|remove)_\w+)_(\d+))")
_MOST_RUNS = 4
_COLOURS = {"top": COLOURS["rankme"], "bottom": TROUGH, "random": GREY}
#: What was measured with one set of questions: a point by kind of intervention and number of directions.
_Answers = Mapping[str, Mapping[int, Point]]


def draw_intervention(runs: Sequence[Run], path: Path) -> bool:
    """Draw a row for each set of questions, a column for each run; return False where there is none."""
    found = [(run, sets) for run in runs if (sets := _last_points(run))][:_MOST_RUNS]
    if not found:
        return False
    names = list(dict.fromkeys(name for _, sets in found for name in sets))
    title = "Multiple-choice accuracy with eigendirections kept or removed"
    # The lines below leave room for the legend.
    note = "Bars: 95 % intervals. Dashed line: nothing removed. At the last update where it was measured.\n\n"
    heights = [2.1] * len(names)
    lines: dict[str, Any] = {}
    with panels(path, title, heights, xlabel="directions", columns=len(found), note=note, sharey="row") as axes:
        for place, axis in enumerate(axes):
            (run, sets), name = found[place % len(found)], names[place // len(found)]
            _draw_panel(axis, run, sets.get(name, {}))
            handles, labels = axis.get_legend_handles_labels()
            lines |= zip(labels, handles, strict=True)
            if place % len(found) == 0:
                questions = name.removeprefix("intervention").strip("_").replace("_", " ")
                axis.set_ylabel(plain(questions or "accuracy", 30))
        where: Look = {"loc": "outside lower center", "ncols": 4}
        axes[0].figure.legend(lines.values(), lines.keys(), fontsize=8, frameon=False, **where)
    return True


def _last_points(run: Run) -> dict[str, dict[str, dict[int, Point]]]:
    """What was measured last, by set of questions, kind of intervention and number of directions (0: none removed)."""
    found: dict[str, dict[str, dict[int, Point]]] = {}
    for key in run.keys:
        if match := INTERVENTION.fullmatch(key):
            kinds = found.setdefault(match[1], {})
            kinds.setdefault(match[2] or match[3], {})[int(match[4] or 0)] = run.number(key)[-1]
    return found


def _draw_panel(axis: Axes, run: Run, answers: _Answers) -> None:
    """A line for each kind of intervention over the numbers of directions."""
    axis.grid(False, axis="x")
    lines = {kind: points for kind, points in sorted(answers.items()) if kind != "full"}
    ks = sorted({k for points in lines.values() for k in points})
    for point in answers.get("full", {}).values():
        axis.axhline(point.value, color=INK, linewidth=1.0, linestyle="--", alpha=0.7)
    for index, (kind, points) in enumerate(lines.items()):
        action, _, which = kind.partition("_")
        colour, shift = _COLOURS.get(which, SOFT), 0.05 * (index - (len(lines) - 1) / 2)
        line = sorted((ks.index(k) + shift, point) for k, point in points.items())
        look: Look = {"color": colour, "marker": "o", "markersize": 3, "label": kind.replace("_", " ")}
        axis.plot(*zip(*((x, point.value) for x, point in line), strict=True), "-" if action == "keep" else ":", **look)
        for x, point in line:
            if point.low is not None and point.high is not None:
                axis.plot([x] * 2, [point.low, point.high], color=colour, linewidth=0.9)
    axis.set_xticks(range(len(ks)), [f"{k:,}" for k in ks])
    steps = {point.step for points in answers.values() for point in points.values()}
    when = f", update {steps.pop():,}" if len(steps) == 1 else ""
    axis.set_title(plain(run.name + when, 44), loc="left", fontsize=9, color=INK)
