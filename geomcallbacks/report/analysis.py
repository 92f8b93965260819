"""The figure of an analysis: loss, geometry, memorisation and accuracy over the same log updates, and the phases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from geomcallbacks.report.axes import (
    WIDTH,
    draw_loss,
    draw_points,
    footnote,
    heading,
    legend,
    log_updates,
    name_phases,
    new_figure,
    outlined,
    phase_bar,
    phase_legend,
    save,
    shade_phases,
    updates_label,
)
from geomcallbacks.report.data import Point, Run
from geomcallbacks.report.style import COLOURS, INK, PEAK, SERIES, SOFT, TROUGH, digits, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEMORISATION = "memorisation/rho"
_HEIGHTS = {"strips": 0.0, "loss": 1.05, "rankme": 1.75, "alpha_req": 1.15, "memorisation": 1.2, "accuracy": 1.4}
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


def plot_analysis(data: Run | Sequence[Run], path: str | Path, title: str | None = None) -> None:
    """Draw loss, RankMe, α, memorisation and accuracy over the same log updates, as far as the runs have them.

    Of one run, the phases lie behind the curves, the boundaries carry RankMe and the update with its 95 % interval,
    and the maximum of the memorisation is marked. Several runs are told apart by colour, with a strip of phases each.

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
    panels = _panels(runs)
    heights = [_HEIGHTS[panel] or 0.24 + 0.19 * len(runs) for panel in panels]
    figure = new_figure(sum(heights) + 1.55)
    axes = dict(
        zip(
            panels,
            figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0],
            strict=True,
        )
    )
    for axis in axes.values():
        log_updates(axis, runs)
    if len(runs) == 1:
        _draw_one(axes, runs[0])
    else:
        _draw_several(axes, runs)
    axes[panels[-1]].set_xlabel(updates_label(runs[0] if len(runs) == 1 else None), color=INK)
    figure.align_ylabels(list(axes.values()))
    heading(figure, title or described(runs))
    footnote(figure, _note(runs))
    save(figure, path)


def described(runs: Sequence[Run]) -> str:
    """In one line, what was measured: the name of one run or the number of several, layer, n and d where all agree."""
    rows = [run.curve()[-1] for run in runs]
    parts = {"{layer}": "layer", "n = {n:,} probe positions": "n", "d = {d:,}": "d"}
    agreed = [text.format(**rows[0]) for text, key in parts.items() if len({row[key] for row in rows}) == 1]
    return ": ".join(
        [runs[0].name if len(runs) == 1 else f"{len(runs)} runs", *([", ".join(agreed)] if agreed else [])]
    )


def accuracies(run: Run) -> list[str]:
    """Keys of the accuracies of a run, in the order of its file."""
    return [key for key in run.keys if key.endswith("/accuracy")]


def _panels(runs: Sequence[Run]) -> list[str]:
    panels = ["strips"] if len(runs) > 1 and any(run.phases for run in runs) else []
    panels += ["loss"] if any(run.loss for run in runs) else []
    panels += ["rankme"]
    panels += ["alpha_req"] if any(run.metric("alpha_req") for run in runs) else []
    panels += ["memorisation"] if any(run.number(MEMORISATION) for run in runs) else []
    panels += ["accuracy"] if any(map(accuracies, runs)) else []
    return panels


def _draw_one(axes: dict[str, Axes], run: Run) -> None:
    for panel, axis in axes.items():
        _label(panel, axis, [run])
    if "loss" in axes:
        draw_loss(axes["loss"], run.loss)
    for name in ("rankme", "alpha_req"):
        if name in axes:
            draw_points(axes[name], run.metric(name), COLOURS[name])
    if "memorisation" in axes:
        points = run.number(MEMORISATION)
        draw_points(axes["memorisation"], points, PEAK)
        _mark_highest(axes["memorisation"], points, PEAK)
    for key, colour in zip(accuracies(run), (TROUGH, *SERIES[4:], *SERIES), strict=False):
        draw_points(axes["accuracy"], run.number(key), colour, _measure(key))
    if "accuracy" in axes:
        legend(axes["accuracy"], loc="upper left")
    _mark_boundaries(axes["rankme"], run)
    shade_phases(list(axes.values()), run.phases)
    name_phases(next(iter(axes.values())), run.phases, WIDTH - 0.8)


def _draw_several(axes: dict[str, Axes], runs: Sequence[Run]) -> None:
    for panel, axis in axes.items():
        _label(panel, axis, runs)
    measures = list(dict.fromkeys(key for run in runs for key in accuracies(run)))
    faint = 0.08  # bands of several runs lie over each other
    for index, run in enumerate(runs):
        colour, name = SERIES[index % len(SERIES)], plain(run.name, 40)
        dashes = _DASHES[index // len(SERIES) % len(_DASHES)]
        if "loss" in axes:
            draw_loss(axes["loss"], run.loss, colour)
        draw_points(axes["rankme"], run.metric("rankme"), colour, name, band=faint, linestyle=dashes)
        if "alpha_req" in axes:
            draw_points(axes["alpha_req"], run.metric("alpha_req"), colour, band=faint, linestyle=dashes)
        if "memorisation" in axes:
            draw_points(axes["memorisation"], run.number(MEMORISATION), colour, band=faint, linestyle=dashes)
        for key in accuracies(run):
            line = _DASHES[measures.index(key) % len(_DASHES)]
            draw_points(axes["accuracy"], run.number(key), colour, band=faint, linestyle=line)
    if len(measures) > 1:
        for key, line in zip(measures, _DASHES * len(measures), strict=False):
            axes["accuracy"].plot([], [], color=SOFT, linestyle=line, label=_measure(key))
        legend(axes["accuracy"], loc="upper left", handlelength=2.6)
    legend(axes["rankme"], loc="best", columns=1 + len(runs) // 5)
    if "strips" in axes:
        _draw_strips(axes["strips"], runs)


def _draw_strips(axis: Axes, runs: Sequence[Run]) -> None:
    """A bar for each run, cut into its phases; their names stand above."""
    for index, run in enumerate(runs):
        phase_bar(axis, -index, run.phases)
        axis.plot([-0.008], [-index], marker="s", markersize=6, color=SERIES[index % len(SERIES)],
                  transform=axis.get_yaxis_transform(), clip_on=False)  # fmt: skip
    axis.set_ylim(-len(runs) + 0.5, 0.5)
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", which="both", length=0)
    phase_legend(axis, {phase.name for run in runs for phase in run.phases})


def _label(panel: str, axis: Axes, runs: Sequence[Run]) -> None:
    windows = {tuple(row["alpha_window"]) for run in runs for row in run.curve()[-1:]}
    ranks = ", ranks {}–{}".format(*windows.pop()) if len(windows) == 1 else ""
    names = {
        "strips": "",
        "loss": "training loss",
        "rankme": "RankMe",
        "alpha_req": f"α{ranks}",
        "memorisation": "memorisation,\nSpearman’s ρ",
        "accuracy": "accuracy",
    }
    axis.set_ylabel(names[panel], color=INK, fontsize=9.5)
    if panel == "accuracy":
        axis.margins(y=0.12)


def _measure(key: str) -> str:
    return plain(key.removesuffix("/accuracy").replace("_", " "), 40)


def _mark_highest(axis: Axes, points: Sequence[Point], colour: str) -> None:
    top = max(points, key=lambda point: point.value)
    text = f"highest {top.value:.3f}, update {top.step:,}"
    _annotate(axis, top.step, top.value, text, colour, over=True)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.14 * (high - low))


def _mark_boundaries(axis: Axes, run: Run) -> None:
    """RankMe and the update of each boundary, a bar for where it may lie."""
    values = [point.value for point in run.metric("rankme")]
    # The label of a trough stands below it.
    axis.set_ylim(min(0.0, min(values) - 0.24 * max(values)) if run.phases[1:] else 0.0, max(values) * 1.22)
    axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= max(values) * 1.22])
    for before, phase in zip(run.phases, run.phases[1:], strict=False):
        peak = before.rankme_end > before.rankme_start
        colour = PEAK if peak else TROUGH
        text = f"{digits(phase.rankme_start)} at {phase.start:,g}"
        if phase.start_interval is not None:
            low, high = phase.start_interval
            if high > low:
                text += f" ({low:,g}–{high:,g})"
                axis.plot(
                    [low, high], [phase.rankme_start] * 2, color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt"
                )
        _annotate(axis, phase.start, phase.rankme_start, text, colour, over=peak)


def _annotate(axis: Axes, step: float, value: float, text: str, colour: str, over: bool) -> None:
    left, right = axis.get_xlim()
    place = max(step, left * 1.15)
    # A label of a third of the width stays inside when it ends at the point from the right half on.
    fraction = _log_share(place, left, right)
    side = "center" if 0.2 < fraction < 0.8 else ("left" if fraction <= 0.2 else "right")
    axis.plot([place], [value], marker="o", markersize=6.5, markerfacecolor="none", color=colour, linestyle="none")
    beside = dict(xytext=(0, 8 if over else -8), textcoords="offset points", ha=side, va="bottom" if over else "top")
    axis.annotate(text, (place, value), color=colour, fontsize=8.5, fontweight="bold", **beside, **outlined())  # type: ignore[arg-type]


def _log_share(place: float, left: float, right: float) -> float:
    from math import log

    return log(place / left) / log(right / left)


def _note(runs: Sequence[Run]) -> str:
    lines = [
        "RankMe = exp(entropy of λ/Σλ), λ: eigenvalues of the centred covariance of hidden states; α: their decay."
    ]
    said = ["Loss: thin, as logged; thick, its mean in each tenth of a decade."] if any(r.loss for r in runs) else []
    said += ["Open circle: update 0."] if any(run.starts for run in runs) else []
    lines += [" ".join(said)] if said else []
    if any(run.number(MEMORISATION) for run in runs):
        lines.append(
            "Memorisation: rank correlation of the model’s log-likelihoods with those of an ∞-gram model of its text."
        )
    if any(
        run.number(key) and run.number(key)[-1].low is not None
        for run in runs
        for key in (MEMORISATION, *accuracies(run))
    ):
        lines[-1] += " Bands: 95 %."
    return "\n".join(lines)
