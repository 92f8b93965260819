"""`geomcallbacks phases`: a table or JSON of a record file, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from demo_curve import DEMO

from geomcallbacks.cli import main
from geomcallbacks.phases import PHASE_NAMES
from geomcallbacks.running.writer import RecordWriter


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
    lines = shown(capsys, write(tmp_path / "geometry.jsonl", {("web", "layer3"): DEMO})).splitlines()
    assert lines[0] == "probe web, layer3"
    assert [line.split()[0] for line in lines[1:]] == ["phase", *PHASE_NAMES]
    assert lines[2].split("  ")[0:1] + lines[2].split()[1:] == [
        "warm-up", "0", "32", "(24–42)", "20.48", "→", "3.72", "rises", "(opposite", "to", "RankMe)"
    ]  # fmt: skip
    assert len({line.index(word) for line, word in zip(lines[1:4], ("RankMe", "20.48", "3.72"), strict=True)}) == 1


def test_command_chooses_curves_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = [(step, 30.0, 1.0) for step, _, _ in DEMO]
    path = write(tmp_path / "g.jsonl", {("web", "layer3"): DEMO, ("web", "layer1"): level, ("code", "layer3"): DEMO})
    found = json.loads(shown(capsys, path, "--json"))
    sizes = [(curve["probe"], curve["layer"], len(curve["phases"])) for curve in found]
    assert sizes == [("web", "layer3", 3), ("web", "layer1", 0), ("code", "layer3", 3)]
    wanted = {"name": PHASE_NAMES[1], "number": 1, "start": 32, "start_interval": [24, 42], "alpha": "falls"}
    assert found[0]["phases"][1].items() >= {**wanted, "agrees": True}.items()
    assert json.loads(shown(capsys, path, "--json", "--layer", "layer3", "--probe", "code")) == found[2:]
    assert "no phase" in shown(capsys, path, "--layer", "layer1")


@pytest.mark.parametrize(("told", "option", "wanted"), [(None, [], 0), (False, [], 2), (None, ["--trained"], 2)])
def test_command_knows_trained_weights(told, option, wanted: int, tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "geometry.jsonl", {("web", "layer3"): DEMO}, from_scratch=told)
    assert json.loads(shown(capsys, path, "--json", *option))[0]["phases"][0]["number"] == wanted


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
