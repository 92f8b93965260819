"""`geomcallbacks phases`: a table or JSON of a record file, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from demo_curve import DEMO

from geomcallbacks.cli import main
from geomcallbacks.phases import PHASE_NAMES
from geomcallbacks.record import read_lines
from geomcallbacks.running.record_writer import RecordWriter


def write(path: Path, curves: dict[tuple[str, str], list[tuple[int, float | None, float]]], **settings) -> Path:
    """A record file as an older version wrote it, without phases."""
    writer = RecordWriter(path, 0, {"settings": settings})
    for (label, layer), points in curves.items():
        for step, rankme, alpha in points:
            writer.write({"step": step, "probe": label, "layer": layer, "rankme": rankme, "alpha_req": alpha})
    writer.close()
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["phases", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = [(step, 30.0, 1.0) for step, _, _ in DEMO]
    path = write(tmp_path / "geometry.jsonl", {("web", "layer3"): DEMO, ("web", "layer1"): level})
    lines = shown(capsys, path).splitlines()
    assert [lines[0], lines[6]] == ["probe web, layer3", "probe web, layer1"]
    assert [line.split()[0] for line in lines[1:5]] == ["phase", *PHASE_NAMES]
    assert " ".join(lines[2].split()) == "warm-up 0 32 (24–42) 20.48 → 3.72 rises (opposite to RankMe)"
    assert lines[1].index("RankMe") == lines[2].index("20.48") == lines[3].index("3.72")
    assert lines[7].startswith("no phase")


@pytest.mark.parametrize(("told", "option", "first"), [(None, [], 0), (False, [], 2), (None, ["--trained"], 2)])
def test_command_chooses_curves_and_prints_json(told, option, first: int, tmp_path: Path, capsys) -> None:
    curves = {("web", "layer3"): DEMO, ("web", "layer1"): DEMO[:20], ("code", "layer3"): DEMO}
    path = write(tmp_path / "geometry.jsonl", curves, from_scratch=told)
    found = json.loads(shown(capsys, path, "--json", *option))
    sizes = [(curve["probe"], curve["layer"], len(curve["phases"])) for curve in found]
    assert sizes == [("web", "layer3", 3), ("web", "layer1", 2), ("code", "layer3", 3)]
    one, two = found[0]["phases"][:2]
    assert (one["number"], two["name"], two["start"], two["start_interval"]) == (first, PHASE_NAMES[1], 32, [24, 42])
    assert (two["alpha"], two["agrees"]) == ("falls", True)
    assert json.loads(shown(capsys, path, "--json", "--layer", "layer3", "--probe", "code", *option)) == found[2:]


@pytest.mark.parametrize(
    ("points", "option", "words"),
    [
        (DEMO[:5], [], "5 values of rankme: phases take at least 6"),
        ([], [], "holds no measurements of geometry"),
        (DEMO, ["--layer", "layer9"], "no layer 'layer9': choose from ['layer3']"),
        (DEMO, ["--probe", "code"], "no probe 'code': choose from ['web']"),
        (None, [], "geometry.jsonl"),
    ],
)
def test_command_says_what_is_wrong(points, option, words, tmp_path: Path, capsys) -> None:
    path = tmp_path / "geometry.jsonl"
    if points is not None:
        write(path, {("web", "layer3"): points})
    assert main(["phases", str(path), *option]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"step": 1, "probe": "p", "rankme": 9}, "geometry.jsonl, record 1 has no 'layer'"),
        ({"step": "8", "probe": "p", "layer": "l", "rankme": 9}, "record 1: step is '8', and must be a number"),
        ({"step": 8, "probe": "p", "layer": "l", "rankme": "9"}, "rankme is '9', and must be a number"),
    ],
)
def test_rows_that_are_none_of_geometry_are_named(row, words, tmp_path: Path, capsys) -> None:
    writer = RecordWriter(tmp_path / "geometry.jsonl", 0, {"settings": {}})
    writer.write(row)
    writer.close()
    assert main(["phases", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_of_a_folder_the_latest_start_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "geometry.jsonl", {("web", "layer3"): DEMO})
    assert "warm-up" in shown(capsys, tmp_path)
    write(tmp_path / "geometry-2.jsonl", {("web", "layer3"): DEMO}, from_scratch=True)
    run_id = read_lines(tmp_path / "geometry-2.jsonl")[0]["run_id"]
    RecordWriter(tmp_path / "geometry-2.jsonl", 8000, {"settings": {"from_scratch": False}}, run_id).close()  # resumed
    assert "warm-up" not in shown(capsys, tmp_path)
