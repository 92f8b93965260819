"""Figures and one HTML page of runs, from their record files; the figure and the summary line of a single curve."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.figure_style import COLOURS, INK, PEAK, TROUGH, plain, style
from geomcallbacks.report_analysis import plot_analysis
from geomcallbacks.report_axes import draw_loss, draw_points, footnote, new_figure, save
from geomcallbacks.report_data import Point, Run, read_runs, record_file, turning_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "describe_report", "plot_analysis", "plot_run", "summary", "turning_points", "write_report"]


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        file: where it stands.
        title: its name on the page.
        caption: what is seen in it.
    """

    file: Path
    title: str
    caption: str


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    kind: str = "png",
    losses: Sequence[str | Path] = (),
    title: str | None = None,
    page: bool = True,
) -> tuple[list[Run], list[Figure], Path | None]:
    """Draw the figures of one or several runs, and write the HTML page that holds them.

    Args:
        paths: record files, or folders of runs.
        out: folder for figures and page, made where missing; what stands there of an earlier report is replaced. None:
            `report` beside the first record file.
        kind: "png" or "svg".
        losses: a file of training loss for each run; by default it is looked for beside the records.
        title: of the page. None: the names of the runs.
        page: False writes the figures alone.

    Returns:
        The runs, the figures, and the page.

    Raises:
        ModuleNotFoundError: matplotlib or jinja2 is not installed.
        FileNotFoundError, ValueError: see `read_runs`.
    """
    if kind not in ("png", "svg"):
        raise ValueError(f"kind={kind!r}: give 'png' or 'svg'")
    if not paths:
        raise ValueError("paths is empty: give the geometry.jsonl of at least one run")
    missing = [name for name in ("matplotlib", *["jinja2"] * page) if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"a report needs {' and '.join(missing)}: pip install 'geomcallbacks[report]'")
    runs = read_runs(paths, losses)
    folder = Path(out) if out is not None else record_file(Path(paths[0])).parent / "report"
    folder.mkdir(parents=True, exist_ok=True)
    figures = _draw_all(runs, folder, kind, title)
    if not page:
        return runs, figures, None
    from geomcallbacks.report_page import write_page

    return runs, figures, write_page(runs, figures, folder / "index.html", title)


def describe_report(runs: Sequence[Run], figures: Sequence[Figure], page: Path | None) -> str:
    """In a few lines: what was read of each run, and where page and figures are."""
    lines = []
    for run in runs:
        beside = [f"{len(run.loss):,} losses" if run.loss else "no training loss found"]
        beside += [f"{len(run.keys)} numbers of behaviour"] if run.keys else []
        phases = " → ".join(phase.name for phase in run.phases) or "no phase stands out"
        lines.append(f"{run.name}: {len(run.curve())} measurements, {', '.join(beside)}; {phases}")
    folder = figures[0].file.parent
    lines.append(f"figures   {folder}{os.sep}: {', '.join(figure.file.name for figure in figures)}")
    lines += [f"page      {page}"] if page is not None else []
    return "\n".join(lines)


def _draw_all(runs: Sequence[Run], folder: Path, kind: str, title: str | None) -> list[Figure]:
    """All figures for which the runs have something; with several runs, those of a single one are named after it."""
    from geomcallbacks import report_figures as draw

    whole = folder / f"analysis.{kind}"
    plot_analysis(runs, whole, title if title and len(runs) == 1 else None)
    figures = [Figure(whole, "Along the run" if len(runs) == 1 else "The runs", _CAPTIONS["analysis"])]
    tails = _tails(runs)
    single: dict[str, Callable[[Run, Path], bool]] = {
        "layers": draw.draw_layers,
        "spectra": draw.draw_spectra,
        "probes": draw.draw_probes,
        "primacy": draw.draw_primacy,
    }
    several: dict[str, Callable[[Sequence[Run], Path], bool]] = {
        "intervention": draw.draw_intervention,
        "behaviour": draw.draw_behaviour,
    }
    for name, draw_run in single.items():
        for run, tail in zip(runs, tails, strict=True):
            file = folder / f"{name}{tail}.{kind}"
            if draw_run(run, file):
                of_run = f": {run.name}" if len(runs) > 1 else ""
                figures.append(Figure(file, _TITLES[name] + of_run, _CAPTIONS[name]))
    for name, draw_runs in several.items():
        file = folder / f"{name}.{kind}"
        if draw_runs(runs, file):
            figures.append(Figure(file, _TITLES[name], _CAPTIONS[name]))
    return figures


def _tails(runs: Sequence[Run]) -> list[str]:
    """What the file names of a run's own figures end in; nothing where there is only one run."""
    if len(runs) == 1:
        return [""]
    slugs = [re.sub(r"[^A-Za-z0-9]+", "-", run.name).strip("-")[:40] for run in runs]
    if "" in slugs or len({slug.lower() for slug in slugs}) < len(runs):  # some file systems know no case
        return [f"-{index}" for index in range(1, len(runs) + 1)]
    return [f"-{slug}" for slug in slugs]


_TITLES = {
    "layers": "Layers",
    "spectra": "Eigenspectra",
    "probes": "Probes",
    "primacy": "Loss by token frequency",
    "intervention": "Spectral intervention",
    "behaviour": "Further numbers",
}
_CAPTIONS = {
    "analysis": "Everything over the same log updates. Phases are found from RankMe; bars at their boundaries, and "
    "numbers in brackets, are 95 % intervals.",
    "layers": "Phases of each layer, with intervals of their boundaries; RankMe and α relative to the layer’s maximum.",
    "spectra": "Shares of the eigenvalues at the start, at the trough and peak of RankMe, and at the end.",
    "probes": "The last layer on each probe.",
    "primacy": "Loss on the probe’s tokens by how frequent they are in the training text.",
    "intervention": "Multiple-choice accuracy with eigendirections of the hidden states kept or removed.",
    "behaviour": "What else was measured beside the geometry.",
}


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
