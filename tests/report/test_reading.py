"""What a report reads of a run: its files, its loss, its phases in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from run_folders import STEPS, rankme, write_loss, write_run

from geomcallbacks.report import describe_phases, read_runs
from geomcallbacks.report.loss import find_loss, read_loss


def changed(file: Path, **fields: Any) -> Path:
    """The record file with other fields in its last record."""
    lines = file.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | fields)
    file.write_text("\n".join(lines) + "\n")
    return file


def test_what_stands_beside_a_record_file_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a", numbers={"memorisation/rho": 0.1})
    write_run(tmp_path / "a", numbers={"memorisation/rho": 0.2}, name="geometry-2.jsonl")
    first, last, folder = read_runs([tmp_path / "a/geometry.jsonl", tmp_path / "a/geometry-2.jsonl", tmp_path / "a"])
    assert [run.file.name for run in (first, last, folder)] == ["geometry.jsonl", *["geometry-2.jsonl"] * 2]
    assert len({run.name for run in (first, last, folder)}) == 3
    assert [run.number("memorisation/rho")[0].value for run in (first, last)] == pytest.approx([0.1, 0.2])


def test_phases_and_their_boundaries_are_told_in_one_line(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    run = read_runs([file])[0]
    assert [(name, row["step"]) for name, row in run.marks] == [
        ("start", 0), ("end of warm-up", 32), ("end of entropy-seeking", 1000), ("end", STEPS[-1]),
    ]  # fmt: skip
    values, alphas = zip(*((rankme(s), 20 / rankme(s)) for s in (0, 32, 1000, STEPS[-1])), strict=True)
    assert describe_phases(run) == (
        "RankMe {:.1f} → {:.1f} (warm-up, to update 32) → {:.1f} (entropy-seeking, to update 1,000) → {:.1f} "
        "(compression-seeking, to update 3,162); α {:.2f} → {:.2f} → {:.2f} → {:.2f}"
    ).format(*values, *alphas)
    file.write_text("\n".join(file.read_text().splitlines()[:3]) + "\n")
    line = "RankMe {:.1f} → {:.1f} (no phase stands out); α 1.00 → –"
    assert describe_phases(read_runs([changed(file, alpha_req=None)])[0]) == line.format(rankme(0), rankme(3))


def test_intervals_belong_to_their_number(tmp_path: Path) -> None:
    numbers = {"cloze/accuracy": 0.5, "cloze/low": 0.4, "cloze/high": 0.6, "cloze/n": 9.0, "cloze/margin": 2.0,
               "rollouts/distinct_n": 3.0, "intervention/full": 0.7, "intervention/full_low": 0.6,
               "intervention/full_high": 0.8}  # fmt: skip
    file = write_run(tmp_path / "a", numbers=numbers)
    run = read_runs([changed(file, intervals={"rankme": [1.0, 2.0]})])[0]
    assert run.keys == ["cloze/accuracy", "cloze/margin", "rollouts/distinct_n", "intervention/full"]
    for key, low, high in (("cloze/accuracy", 0.4, 0.6), ("intervention/full", 0.6, 0.8), ("cloze/margin", None, None)):
        point = run.number(key)[0]
        assert (point.low, point.high) == (pytest.approx(low), pytest.approx(high))
    assert [(point.low, point.high) for point in run.metric("rankme")[-2:]] == [(None, None), (1.0, 2.0)]


def test_loss_of_a_resumed_recipe_run_stands_at_its_update_once(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    write_loss(tmp_path / "a/loss/from_0", [0, 10, 20])
    write_loss(tmp_path / "a/loss/from_9", [9, 19], shift=1.0)  # its own number sorts behind 15 as text
    write_loss(tmp_path / "a/loss/from_15", [15, 25], shift=2.0)
    expected = [(1, 0, 0), (10, 9, 1), (16, 15, 2), (26, 25, 2)]
    assert find_loss(file) == [(at, pytest.approx(7 - math.log10(1 + step) + shift)) for at, step, shift in expected]


def test_loss_of_the_trainer_is_that_of_the_latest_checkpoint_and_not_of_an_earlier_run(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    assert find_loss(file) == []
    for step in (9, 10):
        folder = tmp_path / f"a/checkpoint-{step}"
        folder.mkdir()
        history = [{"step": 5, "loss": 3.0}, {"step": 6, "eval_loss": 9.0}, {"step": step, "loss": 2.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert find_loss(file) == [(5, 3.0), (10, 2.0)]
    later = write_run(tmp_path / "a", name="geometry-2.jsonl")
    assert find_loss(file) == []
    assert find_loss(later) == [(5, 3.0), (10, 2.0)]
    (tmp_path / "loss.jsonl").write_text('{"step": 3, "loss": 1.5}\n{"step": 4}\n')
    assert read_loss(tmp_path / "loss.jsonl") == [(3, 1.5)]


@pytest.mark.parametrize(
    ("path", "losses", "message"),
    [
        ("none.jsonl", [], "none.jsonl does not exist"),
        ("", [], "holds no geometry.jsonl"),
        ("empty.jsonl", [], "no value of rankme"),
        ("a", ["loss.csv"], "gives no training loss"),
        ("a", ["x.csv", "y.csv"], "2 times for 1 runs"),
    ],
)
def test_no_run_and_no_loss_are_refused(tmp_path: Path, path: str, losses: list[str], message: str) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "empty.jsonl").write_text('{"kind": "header", "schema": 1}\n')
    (tmp_path / "loss.csv").write_text("a,b\n1,2\n")
    with pytest.raises((ValueError, OSError), match=message):
        read_runs([tmp_path / path], [tmp_path / loss for loss in losses])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rankme": "3"}, "rankme is '3', and must be a number or null"),
        ({"alpha_req": True}, "alpha_req is True"),
        ({"d": 2.5}, "d is 2.5, and must be a whole number"),
        ({"intervals": [1]}, "intervals is"),
        ({"intervals": {"rankme": [1]}}, "the interval of rankme is"),
        ({"alpha_window": [4, "24"]}, "alpha_window is"),
    ],
)
def test_a_field_that_is_no_number_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_runs([changed(write_run(tmp_path / "a"), **fields)])
