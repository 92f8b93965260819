"""`geomcallbacks phases` of a run's folder, and of rows that are none of geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geomcallbacks.cli import main
from geomcallbacks.phases.table import phases_of_file
from geomcallbacks.running.record_writer import RecordWriter


def write(path: Path, settings: Any = None, **changes: Any) -> Path:
    """A curve that falls and rises; `changes` to each of its records, None takes a field away."""
    writer = RecordWriter(path, 0, {"settings": settings or {}})
    for k, height in enumerate([9.0, 5.0, 3.0, 5.0, 9.0, 17.0, 30.0]):
        row = {"step": 4**k, "probe": "p", "layer": "l", "rankme": height, "alpha_req": 1.0} | changes
        writer.write({key: value for key, value in row.items() if value is not None})
    writer.close()
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": None}, r"geometry\.jsonl, record 1 has no 'layer'"),
        ({"step": "8"}, r"geometry\.jsonl, record 1: step is '8', and must be a number"),
        ({"rankme": "9"}, r"geometry\.jsonl, record 1: rankme is '9', and must be a number"),
    ],
)
def test_rows_that_are_none_of_geometry_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phases_of_file(write(tmp_path / "geometry.jsonl", **changes))


def test_phases_take_the_latest_start_in_the_folder_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = phases_of_file(write(tmp_path / "geometry.jsonl", settings=[1])).values()
    assert [phase.name for phase in found] == ["warm-up", "entropy-seeking"]
    write(tmp_path / "geometry-2.jsonl", settings={"from_scratch": False})
    assert main(["phases", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "compression-seeking" in out
    assert "warm-up" not in out
