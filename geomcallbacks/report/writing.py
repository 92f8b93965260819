"""Figures and one HTML page of one or several runs, from their record files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from geomcallbacks.report.analysis import plot_analysis
from geomcallbacks.report.data import Run, read_runs, record_file


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
    folder = Path(out) if out is not None else record_file(Path(paths[0])).parent / "report"
    if out is None and folder.is_symlink():
        raise ValueError(f"{folder} is a link, through which no report is written: say where with --out")
    folder.mkdir(parents=True, exist_ok=True)
    figures = _draw_all(runs, folder, kind, title)
    if not page:
        return runs, figures, None
    from geomcallbacks.report.page import write_page

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
    from geomcallbacks.report import figures as draw

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
