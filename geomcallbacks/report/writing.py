"""Figures and one HTML page of one or several runs, from their record files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from geomcallbacks.report.analysis import plot_analysis
from geomcallbacks.report.data import read_runs
from geomcallbacks.report.figures import draw_behaviour, draw_primacy, draw_probes
from geomcallbacks.report.intervention import draw_intervention
from geomcallbacks.report.layers import draw_layers
from geomcallbacks.report.page import Figure, write_page
from geomcallbacks.report.run import Run
from geomcallbacks.report.spectra import draw_spectra


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
        FileNotFoundError, ValueError: see `read_runs`; and where `report` is a link that came with the run.
    """
    if kind not in ("png", "svg"):
        raise ValueError(f"kind={kind!r}: give 'png' or 'svg'")
    if not paths:
        raise ValueError("paths is empty: give the geometry.jsonl of at least one run")
    missing = [name for name in ("matplotlib", *["jinja2"] * page) if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"a report needs {' and '.join(missing)}: pip install 'geomcallbacks[report]'")
    runs = read_runs(paths, losses)
    folder = Path(out) if out is not None else runs[0].file.parent / "report"
    if out is None and folder.is_symlink():
        raise ValueError(f"{folder} is a link, through which no report is written: say where with --out")
    folder.mkdir(parents=True, exist_ok=True)
    figures = _draw_all(runs, folder, kind, title)
    return runs, figures, write_page(runs, figures, folder / "index.html", title) if page else None


def describe_report(runs: Sequence[Run], figures: Sequence[Figure], page: Path | None) -> str:
    """Return a few lines: what was read of each run, and where page and figures are."""
    lines = []
    for run in runs:
        beside = [f"{len(run.loss):,} losses" if run.loss else "no training loss found"]
        beside += [f"{len(run.keys)} numbers of behaviour"] if run.keys else []
        phases = " → ".join(phase.name for phase in run.phases) or "no phase stands out"
        lines.append(f"{run.name}: {len(run.curve())} measurements, {', '.join(beside)}; {phases}")
    names = ", ".join(figure.file.name for figure in figures)
    lines.append(f"figures   {figures[0].file.parent}{os.sep}: {names}")
    lines += [f"page      {page}"] if page is not None else []
    return "\n".join(lines)


def _draw_all(runs: Sequence[Run], folder: Path, kind: str, title: str | None) -> list[Figure]:
    """All figures for which the runs have something; with several runs, those of a single one are named after it."""
    alone, whole = len(runs) == 1, folder / f"analysis.{kind}"
    plot_analysis(runs, whole, title if alone else None)
    caption = "All over the same log updates. Phases: by RankMe; bars and brackets at their boundaries: 95 % intervals."
    figures = [Figure(whole, "Along the run" if alone else "The runs", caption)]
    for name, heading, caption, draw in _OF_ONE:
        for run, tail in zip(runs, _tails(runs), strict=True):
            file = folder / f"{name}{tail}.{kind}"
            if draw(run, file):
                figures.append(Figure(file, heading if alone else f"{heading}: {run.name}", caption))
    for name, heading, caption, draw_runs in _OF_ALL:
        file = folder / f"{name}.{kind}"
        if draw_runs(runs, file):
            figures.append(Figure(file, heading, caption))
    return figures


def _tails(runs: Sequence[Run]) -> list[str]:
    """What the file names of a run's own figures end in; nothing where there is only one run."""
    if len(runs) == 1:
        return [""]
    slugs = [re.sub(r"[^A-Za-z0-9]+", "-", run.name).strip("-")[:40] for run in runs]
    if "" in slugs or len({slug.lower() for slug in slugs}) < len(runs):  # some file systems know no case
        return [f"-{index}" for index in range(1, len(runs) + 1)]
    return [f"-{slug}" for slug in slugs]


#: Figures of one run, and of all runs: file, title, caption, and what draws it.
_OF_ONE = (
    ("layers", "Layers", "Phases of each layer, with intervals; RankMe and α over the layer’s maximum.", draw_layers),
    ("spectra", "Eigenspectra", "At the start, at each boundary of the phases, and at the end.", draw_spectra),
    ("probes", "Probes", "The last layer on each probe.", draw_probes),
    ("primacy", "Loss by token frequency", "On the probe’s tokens, by their count in the training text.", draw_primacy),
)
_OF_ALL = (
    ("intervention", "Spectral intervention", "Accuracy with eigendirections kept or removed.", draw_intervention),
    ("behaviour", "Further numbers", "What else was measured beside the geometry.", draw_behaviour),
)
