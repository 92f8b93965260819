"""The figures of a report: what they show, and that there is one for all that was measured and for nothing else."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest
from run_folders import STEPS, rankme, write_loss, write_run

from geomcallbacks.report import plot_analysis, read_runs, write_report
from geomcallbacks.report.bands import spread


def drawn_text(svg: Path) -> list[str]:
    """What a figure says: matplotlib writes each text as paths, and the text itself in a comment before them."""
    return [html.unescape(text.strip()) for text in re.findall(r"<!-- (.*?) -->", svg.read_text("utf-8"), re.DOTALL)]


def test_labels_that_would_meet_are_moved_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = rng.integers(1, 6)
        widths = rng.uniform(0.02, 0.9 / count, count)
        places = np.array(spread(np.sort(rng.uniform(0, 1, count)).tolist(), widths.tolist()))
        assert (places - widths / 2 > -1e-9).all()
        assert (places + widths / 2 < 1 + 1e-9).all()
        assert (np.diff(places) > (widths[:-1] + widths[1:]) / 2 - 1e-9).all()
    assert spread([0.2, 0.7], [0.2, 0.2]) == [0.2, 0.7]


def test_boundaries_and_highest_value_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks, annotate = [], matplotlib.axes.Axes.annotate  # outlined text leaves no comment in an SVG
    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", lambda *a, **k: marks.append(a[1:3]) or annotate(*a, **k))
    numbers = {"memorisation/rho": 0.1, "memorisation/low": 0.05, "memorisation/high": 0.2, "cloze_near/accuracy": 0.2}
    plot_analysis(read_runs([write_run(tmp_path / "a", numbers=numbers)])[0], tmp_path / "a.svg")
    said = drawn_text(tmp_path / "a.svg")
    assert {"warm-up", "entropy-seeking", "compression-seeking", "RankMe", "α, ranks 4–24", "cloze near"} <= set(said)
    assert "optimiser updates, of 512 tokens each" in said
    assert not {"training loss", "λ₁ / Σλ"} & set(said)
    highest, update = 0.1 * math.log10(10 + STEPS[-2]), STEPS[-2]
    for text, step, value in (
        (f"{rankme(32):.3g} at 32 (", 32, rankme(32)),
        (f"{rankme(1000):.3g} at 1,000 (", 1000, rankme(1000)),
        (f"highest {highest:.3f}, update {update:,}", update, highest),
    ):
        assert [at for found, at in marks if found.startswith(text)] == [(step, pytest.approx(value))]


def test_a_run_without_behaviour_shows_top1_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves, plot = [], matplotlib.axes.Axes.plot
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda *a, **k: curves.append(a[1:3]) or plot(*a, **k))
    write_loss(tmp_path / "a/loss/from_0", list(range(0, 2000, 10)))
    runs = read_runs([write_run(tmp_path / "a")])
    plot_analysis(runs, tmp_path / "a.svg", title="A title")
    said = drawn_text(tmp_path / "a.svg")
    assert {"training loss", "RankMe", "α, ranks 4–24", "λ₁ / Σλ", "A title"} <= set(said)
    for value in (rankme, lambda step: 20 / rankme(step), lambda _: 0.2):
        assert ([*STEPS[1:]], [pytest.approx(value(step)) for step in STEPS[1:]]) in curves
    assert [curve for curve in curves if list(curve[0]) == [step for step, _ in runs[0].loss]]
    with pytest.raises(ValueError, match="data is empty"):
        plot_analysis([], tmp_path / "b.svg")


@pytest.mark.parametrize("measurements", [1, 2])
def test_a_short_run_is_drawn_without_phases(tmp_path: Path, measurements: int) -> None:
    file = write_run(tmp_path / "a")
    file.write_text("\n".join(file.read_text().splitlines()[: 1 + measurements]) + "\n")
    runs, figures, _ = write_report([file], kind="svg")
    assert runs[0].phases == []
    assert [figure.file.name for figure in figures] == ["analysis.svg", "spectra.svg"]
    labels = [text.split(",")[0] for text in drawn_text(figures[1].file) if ", update" in text]
    assert labels == ["start", "end"][:measurements]


def test_every_figure_is_drawn_for_what_was_measured_and_for_nothing_else(tmp_path: Path) -> None:
    numbers = {f"primacy/band_{k}": 1.0 * k for k in range(1, 4)} | {"held_out/loss": 3.0, "intervention/full": 0.8}
    numbers |= {"intervention/keep_top_10": 0.5, "intervention/remove_random_2": 0.4}
    full = write_run(tmp_path / "full", probes=["probe", "short"], layers=["layer10", "layer9"], numbers=numbers)
    runs, figures, page = write_report([full], kind="svg")
    assert page == tmp_path / "full/report/index.html"
    said = {figure.file.stem: drawn_text(figure.file) for figure in figures}
    assert list(said) == ["analysis", "layers", "spectra", "probes", "primacy", "intervention", "behaviour"]
    assert runs[0].layers == ["layer9", "layer10"]
    assert {"layer9", "layer10", "phases", "RankMe", "α", "warm-up"} <= set(said["layers"])
    marks = [text.split(", ")[:2] for text in said["spectra"] if ": RankMe" in text]
    assert [mark for mark, _ in marks] == ["start", "end of warm-up", "end of entropy-seeking", "end"]
    assert marks[1][1].startswith("update 32: RankMe")
    assert {"probe, n = 2,048", "short, n = 2,048"} <= set(said["probes"])
    assert {"1 (most frequent)", "2", "3 (rarest)"} <= set(said["primacy"])
    assert {"keep top", "remove random", "10", "full, update 2,154"} <= set(said["intervention"])
    assert "held_out/loss" in said["behaviour"]

    bare = write_run(tmp_path / "bare")
    _, figures, page = write_report([bare, full], tmp_path / "both", page=False)
    assert page is None
    written = {file.name for file in (tmp_path / "both").iterdir()}
    assert written == {figure.file.name for figure in figures}
    assert {"analysis.png", "spectra-bare.png", "spectra-full.png", "primacy-full.png", "intervention.png"} < written
    assert "primacy-bare.png" not in written
    assert min(matplotlib.image.imread(tmp_path / "both/analysis.png").shape[:2]) > 700
    with pytest.raises(ValueError, match="kind='gif'"):
        write_report([full], kind="gif")
