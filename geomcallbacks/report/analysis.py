"""The figure of an analysis: loss, geometry, memorisation and accuracy over the same log updates, and the phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from geomcallbacks.report.axes import draw_loss, draw_points, legend, panels
from geomcallbacks.report.bands import phase_bar, phase_legend
from geomcallbacks.report.run import Point, Run
from geomcallbacks.report.style import COLOURS, INK, PEAK, SERIES, SOFT, TROUGH, Look, digits, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEMORISATION = "memorisation/rho"
#: Panels in their order: height in inches (None: it depends on the number of runs), and name of y.
_PANELS = {
    "strips": (None, ""),
    "loss": (1.05, "training loss"),
    "rankme": (1.75, "RankMe"),
    "alpha_req": (1.15, "α"),
    "top1_share": (1.15, "λ₁ / Σλ"),
    MEMORISATION: (1.2, "memorisation,\nSpearman’s ρ"),
    "accuracy": (1.4, "accuracy"),
}
_CURVES = ("rankme", "alpha_req", "top1_share", MEMORISATION)
_COLOURS = COLOURS | {MEMORISATION: PEAK}
_ACCURACIES = (TROUGH, *SERIES[4:], *SERIES)
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_FAINT = 0.08  # opacity of the bands of several runs, which lie over each other


def plot_analysis(data: Run | Sequence[Run], path: str | Path, title: str | None = None) -> None:
    """Draw loss, RankMe, α, memorisation and accuracy over the same log updates, as far as the runs have them.

    Of one run, the phases lie behind the curves, the boundaries carry RankMe and the update with its 95 % interval,
    and the maximum of the memorisation is marked; without memorisation and accuracy, λ₁/Σλ is drawn. Several runs are
    told apart by colour, with a strip of phases each.

    Args:
        data: what `read_runs` gives, or one of its runs.
        path: the PNG or SVG to write; its folder must exist.
        title: line above the figure. None: layer, n and d of the first run.

    Raises:
        ValueError: there is no run.
    """
    runs = [data] if isinstance(data, Run) else list(data)
    if not runs:
        raise ValueError("data is empty: give at least one run")
    names = _panels(runs)
    heights = [_PANELS[name][0] or 0.24 + 0.19 * len(runs) for name in names]
    phases = runs[0].phases if len(runs) == 1 else ()
    with panels(path, title or _title(runs), heights, runs=runs, phases=phases, note=_note(runs)) as axes:
        by_name = dict(zip(names, axes, strict=True))
        for name, axis in by_name.items():
            axis.set_ylabel(_PANELS[name][1] + _window(runs) * (name == "alpha_req"), color=INK, fontsize=9.5)
        _draw_curves(by_name, runs)
        if "accuracy" in by_name:
            _draw_accuracies(by_name["accuracy"], runs)
        if "strips" in by_name:
            _draw_strips(by_name["strips"], runs)
        if len(runs) == 1:
            _mark_boundaries(by_name["rankme"], runs[0])
        else:
            legend(by_name["rankme"], loc="best", ncols=1 + len(runs) // 5)
        if len(runs) == 1 and MEMORISATION in by_name:
            _mark_highest(by_name[MEMORISATION], runs[0].number(MEMORISATION))


def _panels(runs: Sequence[Run]) -> list[str]:
    """Names of the panels for which the runs have something."""
    several, accuracy = len(runs) > 1, any(run.accuracies for run in runs)
    has: dict[str, bool] = {name: any(_curve(run, name) for run in runs) for name in _CURVES}
    has["top1_share"] &= not (several or accuracy or has[MEMORISATION])
    has |= {"loss": any(run.loss for run in runs), "accuracy": accuracy}
    has["strips"] = several and any(run.phases for run in runs)
    return [name for name in _PANELS if has[name]]


def _curve(run: Run, name: str) -> list[Point]:
    return run.number(name) if "/" in name else run.metric(name)


def _title(runs: Sequence[Run]) -> str:
    """In one line, what was measured: the name of one run or the number of several, layer, n and d where all agree."""
    rows = [run.curve()[-1] for run in runs]
    parts = {"{layer}": "layer", "n = {n:,} probe positions": "n", "d = {d:,}": "d"}
    agreed = [text.format(**rows[0]) for text, key in parts.items() if len({row[key] for row in rows}) == 1]
    name = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return f"{name}: {', '.join(agreed)}" if agreed else name


def _window(runs: Sequence[Run]) -> str:
    """The ranks over which α was fitted, if they are the same in all runs."""
    windows = {tuple(run.curve()[-1]["alpha_window"]) for run in runs}
    return ", ranks {}–{}".format(*windows.pop()) if len(windows) == 1 else ""


def _draw_curves(axes: dict[str, Axes], runs: Sequence[Run]) -> None:
    for index, run in enumerate(runs):
        colours: dict[str, str] = _COLOURS
        line: Look = {}
        if len(runs) > 1:
            colours = dict.fromkeys(_COLOURS, SERIES[index % len(SERIES)])
            line = {"band": _FAINT, "linestyle": _DASHES[index // len(SERIES) % len(_DASHES)]}
        if "loss" in axes:
            draw_loss(axes["loss"], run.loss, colours["loss"])
        for name in axes.keys() & set(_CURVES):
            draw_points(axes[name], _curve(run, name), colours[name], plain(run.name, 40), **line)


def _draw_accuracies(axis: Axes, runs: Sequence[Run]) -> None:
    """One run: a colour for each accuracy. Several: the colour is the run's, and the dashes are the accuracy's."""
    keys = list(dict.fromkeys(key for run in runs for key in run.accuracies))
    for place, key in enumerate(keys):
        name = plain(key.removesuffix("/accuracy").replace("_", " "), 40)
        dashes = _DASHES[place % len(_DASHES)]
        for index, run in enumerate(runs):
            if len(runs) == 1:
                draw_points(axis, run.number(key), _ACCURACIES[place % len(_ACCURACIES)], name)
            else:
                draw_points(axis, run.number(key), SERIES[index % len(SERIES)], band=_FAINT, linestyle=dashes)
        if len(runs) > 1 and len(keys) > 1:
            axis.plot([], [], color=SOFT, linestyle=dashes, label=name)
    axis.margins(y=0.12)
    legend(axis, loc="upper left", handlelength=1.6 if len(runs) == 1 else 2.6)


def _draw_strips(axis: Axes, runs: Sequence[Run]) -> None:
    """A bar for each run, cut into its phases; their names stand above."""
    square: Look = {"marker": "s", "markersize": 6, "transform": axis.get_yaxis_transform(), "clip_on": False}
    for index, run in enumerate(runs):
        phase_bar(axis, -index, run.phases)
        axis.plot([-0.008], [-index], color=SERIES[index % len(SERIES)], **square)
    axis.set_ylim(-len(runs) + 0.5, 0.5)
    axis.set_axis_off()
    phase_legend(axis, {phase.name for run in runs for phase in run.phases})


def _mark_highest(axis: Axes, points: Sequence[Point]) -> None:
    top = max(points, key=lambda point: point.value)
    _annotate(axis, top.step, top.value, f"highest {top.value:.3f}, update {top.step:,}", PEAK, over=True)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.14 * (high - low))


def _mark_boundaries(axis: Axes, run: Run) -> None:
    """RankMe and the update of each boundary, a bar for where it may lie."""
    values = [point.value for point in run.metric("rankme")]
    top = max(values) * 1.22
    # The label of a trough stands below it.
    axis.set_ylim(min(0.0, min(values) - 0.24 * max(values)) if run.phases[1:] else 0.0, top)
    axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= top])
    for phase in run.phases[:-1]:
        rises = phase.rankme_end > phase.rankme_start
        colour, height = PEAK if rises else TROUGH, phase.rankme_end
        text = f"{digits(height)} at {phase.end:,g}"
        low, high = phase.end_interval or (phase.end, phase.end)
        if high > low:
            text += f" ({low:,g}–{high:,g})"
            bar: Look = {"linewidth": 5, "alpha": 0.35, "solid_capstyle": "butt"}
            axis.plot([low, high], [height] * 2, color=colour, **bar)
        _annotate(axis, phase.end, height, text, colour, over=rises)


def _annotate(axis: Axes, step: float, value: float, text: str, colour: str, over: bool) -> None:
    """Mark a point with a ring and write beside it, with a white outline so that it stays legible on lines."""
    from matplotlib.patheffects import withStroke

    left, right = axis.get_xlim()
    place = max(step, left * 1.15)
    # A label of a third of the width stays inside when it ends at the point from the right half on.
    share = math.log(place / left) / math.log(right / left)
    side = "center" if 0.2 < share < 0.8 else ("left" if share <= 0.2 else "right")
    axis.plot([place], [value], marker="o", markersize=6.5, markerfacecolor="none", color=colour, linestyle="none")
    where: Look = {"xytext": (0, 8 if over else -8), "ha": side, "va": "bottom" if over else "top"}
    outline = [withStroke(linewidth=2.2, foreground="white", alpha=0.85)]
    look: Look = {"color": colour, "fontsize": 8.5, "fontweight": "bold", "path_effects": outline}
    axis.annotate(text, (place, value), textcoords="offset points", **where, **look)


def _note(runs: Sequence[Run]) -> str:
    numbers = [run.number(key)[-1:] for run in runs for key in (MEMORISATION, *run.accuracies)]
    bands = any(point.low is not None for points in numbers for point in points)
    memorisation = "Memorisation: rank correlation of the model’s log-likelihoods with an ∞-gram model’s of its text."
    lines = [
        ["RankMe = exp(entropy of λ/Σλ), λ: eigenvalues of the centred covariance of hidden states; α: their decay."],
        ["Loss: thin, as logged; thick, its mean in each tenth of a decade."] * any(run.loss for run in runs)
        + ["Open circle: update 0."] * any(0 in run.steps for run in runs),
        [memorisation] * any(run.number(MEMORISATION) for run in runs) + ["Bands: 95 %."] * bands,
    ]
    return "\n".join(" ".join(line) for line in lines if line)
