"""The record file of a trace: what it refuses, and what two traces make of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geomcallbacks import read_records
from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.file import TraceFile, behaviour_out, default_out, path_from

HEADER: dict[str, Any] = {"trace": {"models": ["m"]}, "settings": {"layers": -1}, "probes": {}, "versions": {}}
CURVE = [Checkpoint("m", f"step{step}", step) for step in (1, 2)]


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\n",
        b'{\n  "hidden_size": 16\n}\n',
        b"\n",
        b'{"kind": "header", "schema": 1, "run_id": "x", "resumed_from": null}\n',
    ],
    ids=["notes", "config.json", "blank", "training run"],
)
def test_a_file_of_another_kind_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "precious"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"precious.* is .*record file of a t.*: give another --out"):
        TraceFile(file, HEADER, CURVE)
    assert file.read_bytes() == content
    (tmp_path / "empty").touch()
    assert TraceFile(tmp_path / "empty", HEADER, CURVE).done == set()


@pytest.mark.parametrize("part", ["trace", "settings", "probes", "measures"])
def test_a_trace_does_not_mix_with_another(tmp_path: Path, part: str) -> None:
    at_work = TraceFile(tmp_path / "t.jsonl", HEADER | {part: {"x": [2]}}, CURVE)
    TraceFile(tmp_path / "t.jsonl", HEADER | {part: {"x": [1]}, "versions": {"torch": "3"}}, CURVE).add(
        CURVE[0], [{"step": 1}]
    )
    message = rf"begun with other {part}: x was \[1\], is \[2\]; give the same to go on with it, or another --out"
    with pytest.raises(ValueError, match=message):
        at_work.add(CURVE[1], [{"step": 2}])
    with pytest.raises(ValueError, match=message):
        TraceFile(tmp_path / "t.jsonl", at_work.header, CURVE)
    assert [record["step"] for record in read_records(tmp_path / "t.jsonl")] == [1]


def test_other_checkpoints_at_the_same_steps_are_refused(tmp_path: Path) -> None:
    TraceFile(tmp_path / "t.jsonl", HEADER, CURVE).add(CURVE[0], [{"step": 1}])
    for curve, now in (
        ([Checkpoint("m", "step1", 0)], "m@step1 stands at 0"),
        ([Checkpoint("m", "main", 1)], "m@main stands at 1"),
    ):
        with pytest.raises(ValueError, match=f"has m@step1 at step 1, and now {now}: give the same revisions"):
            TraceFile(tmp_path / "t.jsonl", HEADER, curve)
    assert TraceFile(tmp_path / "t.jsonl", HEADER, CURVE[1:]).done == {1}  # another process's share


def test_what_was_measured_is_not_skipped_and_what_was_skipped_is_measured(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.jsonl", HEADER, CURVE)
    file.skip(CURVE[1], "torn")
    assert TraceFile(tmp_path / "t.jsonl", HEADER, CURVE).done == set()
    file.add(CURVE[1], [{"step": 2}])
    file.skip(CURVE[1], "its behaviour failed")
    assert [(r["step"], r["revision"]) for r in read_records(file.path)] == [(2, "step2")]
    assert "skip" not in file.path.read_text()


def test_default_names(tmp_path: Path) -> None:
    assert default_out(["EleutherAI/pythia-160m"]) == Path("pythia-160m-geometry.jsonl")
    assert default_out(["a/b@main", "c/d"]) == Path("b-to-d-geometry.jsonl")
    (tmp_path / "checkpoints").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoints"):
        assert default_out([str(folder)]) == tmp_path / "geometry-trace.jsonl"
        assert path_from(str(folder), tmp_path / "g.jsonl") == "."  # one curve, also where both are moved
    assert path_from("org/x", tmp_path / "g.jsonl") == "org/x"
    assert behaviour_out(Path("r/pythia-geometry.jsonl")) == Path("r/pythia-behaviour.jsonl")
    assert behaviour_out(Path("r/mine.jsonl")) == Path("r/mine-behaviour.jsonl")
