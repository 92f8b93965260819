"""The figure and the summary line of a run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import matplotlib.axes
import matplotlib.image
import pytest

from geomcallbacks.report import plot_run, summary, turning_points

STEPS = [0, 1, 3, 10, 30, 100, 300, 1000, 3000]
RANKME = [20.0, 19.0, 15.0, 6.0, 4.0, 9.0, 16.0, 22.0, 18.0]


def make_records(rankme: list[float | None], steps: list[int] = STEPS, **changed: Any) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "probe": "probe",
            "layer": "layer2",
            "positions": 8,
            "n": 2048,
            "d": 32,
            "alpha_window": [4, 24],
            "rankme": value,
            "alpha_req": None if value is None else 20 / value,
            "top1_share": None if value is None else 1 / value,
            **changed,
        }
        for step, value in zip(steps, rankme, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RANKME, (4, 7)),
        ([3.0, 2.0, 1.0], (2, 2)),  # still falling: nothing has turned
        ([1.0, 2.0, 3.0], (0, 2)),
        ([9.0, 2.0, 5.0], (1, 2)),  # the start is above the peak
        ([4.0], (0, 0)),
    ],
)
def test_turning_points(values: list[float], expected: tuple[int, int]) -> None:
    assert turning_points(values) == expected


def test_turning_points_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="rankme is empty"):
        turning_points([])


def test_summary_quotes_the_records_in_any_order_and_without_missing_values() -> None:
    records = make_records(RANKME) + make_records([None], steps=[5000])
    line = summary(records[::-1])
    assert line == (
        "RankMe 20.0 (start, update 0) → 4.0 (trough, update 30) → 22.0 (peak, update 1,000) → "
        "18.0 (end, update 3,000); α 1.00 → 5.00 → 0.91 → 1.11"
    )
    assert summary(make_records(RANKME, alpha_req=None)).endswith("α – → – → – → –")


def drawn(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> dict[str, list[Any]]:
    """Draws the figure, and returns what was asked of matplotlib: points by y label, and marks."""
    seen: dict[str, list[Any]] = {"lines": [], "marks": [], "texts": [], "labels": []}
    spied = {"plot": "lines", "axvline": "marks", "annotate": "texts", "set_ylabel": "labels"}
    for method, kind in spied.items():
        original = getattr(matplotlib.axes.Axes, method)

        def spy(self: Any, *args: Any, _original: Any = original, _kind: str = kind, **kwargs: Any) -> Any:
            seen[_kind].append(args)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(matplotlib.axes.Axes, method, spy)
    plot_run(*arguments, **options)
    return seen


def test_the_figure_shows_the_four_curves_and_marks_trough_and_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = [(update, 7.0 - math.log10(update)) for update in range(1, 3001, 10)]
    seen = drawn(monkeypatch, make_records(RANKME), loss, tmp_path / "geometry.png")
    image = matplotlib.image.imread(tmp_path / "geometry.png")
    assert min(image.shape[:2]) > 1000
    assert seen["labels"] == [("training loss",), ("RankMe",), ("α, ranks 4–24",), ("λ₁ / Σλ",)]
    curves = [
        dict(zip(*args[:2], strict=True)) for args in seen["lines"] if len(args) == 2 and isinstance(args[0], tuple)
    ]
    later = dict(zip(STEPS[1:], RANKME[1:], strict=True))
    assert later in curves
    assert {step: pytest.approx(20 / value) for step, value in later.items()} in curves
    assert {step: pytest.approx(1 / value) for step, value in later.items()} in curves
    assert dict(loss) in curves
    assert {args[0] for args in seen["marks"]} == {30, 1000}
    assert [args[:2] for args in seen["texts"]] == [
        ("trough 4.0, update 30", (30, 4.0)),
        ("peak 22.0, update 1,000", (1000, 22.0)),
    ]


@pytest.mark.parametrize("rankme", [[4.0], [4.0, 3.0], [4.0, None], [4.0, 5.0]])
def test_short_runs_and_missing_values_are_drawn(tmp_path: Path, rankme: list[float | None]) -> None:
    plot_run(make_records(rankme, steps=[0, 1][: len(rankme)]), [], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_what_cannot_be_one_curve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer1.*layer2.*select"):
        plot_run(make_records(RANKME) + make_records(RANKME, layer="layer1"), [], tmp_path / "a.png")
    with pytest.raises(ValueError, match="no value of rankme"):
        summary(make_records([None], steps=[0]))


def test_matplotlib_is_imported_late_and_its_backend_left_alone() -> None:
    code = "import sys, geomcallbacks.report; sys.exit('matplotlib' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0
