"""What a run leaves behind can be read, whole, after every kind of end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from geomcallbacks import GeometryRecord, read_records, read_spectra
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.record import read_lines
from geomcallbacks.running.writer import RecordWriter

ROOT = Path(__file__).parent.parent


def record(step: int, **changes: object) -> GeometryRecord:
    fields = dict(
        step=step,
        tokens=None,
        probe="weiß/中",  # several bytes a letter, so that a torn line may end inside one
        fingerprint="0123456789abcdef",
        layer="layer3",
        module="model",
        positions="last",
        n=64,
        d=16,
        metrics=dict.fromkeys(METRIC_NAMES, 0.1 + step) | {"alpha_req": None},
        alpha_window=(2, 8),
        precision="fp32",
        batch_size=32,
        seconds_forward=0.5,
        seconds_spectrum=0.25,
        reasons={"alpha_req": "no"},
    )
    return GeometryRecord(**{**fields, **changes})


def run(path: Path, steps: list[int], start: int = 0) -> Path:
    writer = RecordWriter(path, start, {"settings": {}})
    for step in steps:
        writer.write(record(step))
    writer.close()
    return writer.path


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_records(path)]


def test_a_line_carries_everything(tmp_path: Path) -> None:
    path = tmp_path / "geometry.jsonl"
    writer = RecordWriter(path, 0, {})
    writer.write(record(7, tokens=9, intervals={"rankme": (1.0, 2.0)}, notes=["halved"], spectrum=("file", "key")))
    (line,) = read_records(path)
    assert line == {
        "step": 7,
        "tokens": 9,
        "probe": "weiß/中",
        "fingerprint": "0123456789abcdef",
        "layer": "layer3",
        "module": "model",
        "positions": "last",
        "n": 64,
        "d": 16,
        "alpha_window": [2, 8],
        "precision": "fp32",
        "batch_size": 32,
        "seconds_forward": 0.5,
        "seconds_spectrum": 0.25,
        "reasons": {"alpha_req": "no"},
        "intervals": {"rankme": [1.0, 2.0]},
        "spectrum": ["file", "key"],
        "notes": ["halved"],
        "phase": None,
        "convention": "eigenvalues of the centred covariance over n-1, eps=0, no truncation",
        **dict.fromkeys(METRIC_NAMES, 7.1),
        "alpha_req": None,
    }
    writer.close()
    writer.close()


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    value = float(torch.rand(1, dtype=torch.float64)) / 3
    writer = RecordWriter(tmp_path / "g.jsonl", 0, {})
    writer.write(record(0, metrics={"rankme": value}))
    assert read_records(tmp_path / "g.jsonl")[0]["rankme"] == value  # on disk before the writer is closed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_nan_in_the_file(tmp_path: Path, value: float) -> None:
    writer = RecordWriter(tmp_path / "g.jsonl", 0, {})
    with pytest.raises(ValueError, match="JSON"):
        writer.write(record(0, metrics={"rankme": value}))
    writer.write(record(1))
    text = (tmp_path / "g.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert steps(tmp_path / "g.jsonl") == [1]


def test_header_line(tmp_path: Path) -> None:
    path = run(tmp_path / "g.jsonl", [0])
    run(path, [1], start=5)
    first, _, second, _ = read_lines(path)
    assert (first["kind"], first["schema"], first["resumed_from"], first["settings"]) == ("header", 1, None, {})
    assert second["resumed_from"] == 5
    assert first["run_id"] != second["run_id"]


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """Whatever the file was cut to: all whole lines are read, then the run goes on behind the torn one."""
    whole = run(tmp_path / "whole.jsonl", [0, 10]).read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]  # of header, record 0, record 10
    path = tmp_path / "g.jsonl"
    for cut in [*range(ends[0]), *range(ends[0], ends[1] - 2, 29), *range(ends[1] - 2, len(whole) + 1)]:
        path.write_bytes(whole[:cut])
        wanted = [step for step, end in ((0, ends[1]), (10, ends[2])) if cut >= end]
        assert steps(path) == wanted, cut
        if cut % 41 == 0 or cut in ends or cut - 1 in ends:
            assert run(path, [30], start=20) == path
            assert steps(path) == [*wanted, 30], cut


def test_torn_twice_in_a_row(tmp_path: Path) -> None:
    """Killed in a record, and killed again anywhere in the lines of the next start."""
    path = tmp_path / "g.jsonl"
    first = run(path, [0, 10]).read_bytes()[:-20]
    path.write_bytes(first)
    whole = run(path, [20], start=5).read_bytes()
    for cut in [
        *range(len(first), len(first) + 60),
        *range(len(first) + 60, len(whole) - 30, 23),
        *range(len(whole) - 30, len(whole) + 1),
    ]:
        path.write_bytes(whole[:cut])
        last = [20] if cut >= len(whole) - 1 else []
        assert steps(path) == [0, *last], cut
    path.write_bytes(whole[: len(first) + 8])
    run(path, [40], start=5)
    assert steps(path) == [0, 40]


@pytest.mark.parametrize("damage", [b"not json", b'{"kind": "rec', b"[1, 2]", b"3", b"\xff\xfe"])
def test_a_broken_line_inside_is_an_error(tmp_path: Path, damage: bytes) -> None:
    path = run(tmp_path / "g.jsonl", [0, 10, 20])
    lines = path.read_bytes().split(b"\n")
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"g.jsonl, line 3, is not a record"):
        read_records(path)


def test_later_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text(json.dumps({"kind": "header", "schema": 2}) + "\n")
    with pytest.raises(ValueError, match=r"follows schema 2, this version reads 1: upgrade"):
        read_records(tmp_path / "g.jsonl")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.jsonl")


def test_resuming_drops_what_lies_beyond(tmp_path: Path) -> None:
    path = run(tmp_path / "g.jsonl", [0, 10, 20, 30])
    assert run(path, [20, 25], start=15) == path
    assert steps(path) == [0, 10, 20, 25]
    assert run(path, [21], start=20) == path
    assert steps(path) == [0, 10, 20, 21]
    assert len(read_lines(path)) == 3 + 7  # nothing is ever taken out of the file


def test_skips_are_kept_beside_records(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "g.jsonl", 0, {})
    writer.skip(3, "budget")
    writer.write(record(4))
    assert steps(tmp_path / "g.jsonl") == [4]
    assert read_lines(tmp_path / "g.jsonl")[1] == {"kind": "skip", "step": 3, "reason": "budget"}


def test_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "geometry.jsonl"
    names = [run(path, [0, number]).name for number in (1, 2, 3)]
    assert names == ["geometry.jsonl", "geometry-2.jsonl", "geometry-3.jsonl"]
    assert steps(path.with_name("geometry-2.jsonl")) == [0, 2]
    assert run(path, [9], start=5).name == "geometry-3.jsonl"  # the last run is the one that goes on
    assert run(path, [0]).name == "geometry-4.jsonl"
    assert run(path, [9], start=5).name == "geometry-4.jsonl"


@pytest.mark.parametrize("start", [0, 3])
def test_large_number_in_a_neighbour_s_name(tmp_path: Path, start: int) -> None:
    """A date, say, which is no reason to try all names up to it."""
    (tmp_path / "g-20261125103000.jsonl").write_text("")
    assert run(tmp_path / "g.jsonl", [start], start=start).name in ("g.jsonl", "g-20261125103000.jsonl")


def test_empty_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.touch()
    assert run(path, [0]) == path
    assert steps(path) == [0]


HOLD = """
import sys
from geomcallbacks.running.writer import RecordWriter
writer = RecordWriter(sys.argv[1], int(sys.argv[2]), {})
print(writer.path.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.fault
@pytest.mark.parametrize("start", [0, 5])
def test_two_processes_are_kept_apart(tmp_path: Path, start: int, tally: Callable[..., None]) -> None:
    """The other process has the file open; killed, it leaves no lock behind."""
    path = run(tmp_path / "g.jsonl", [0]) if start else tmp_path / "g.jsonl"
    command = [sys.executable, "-c", HOLD, str(path), str(start)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert other.stdout.readline().strip() == "g.jsonl"
        mine = RecordWriter(path, start, {})
        assert mine.path.name == "g-2.jsonl"
        assert RecordWriter(path, start, {}).path.name == "g-3.jsonl"  # within one process too
        mine.close()
    finally:
        other.kill()
        other.wait(timeout=20)
        other.stdin.close()
        other.stdout.close()
    (tmp_path / "g-2.jsonl").unlink()
    (tmp_path / "g-3.jsonl").unlink()
    assert run(path, [9], start=5) == path
    tally("two writers", injected=2, survived=2)


def test_spectra_are_kept_and_read(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "g.jsonl"
    writer = RecordWriter(path, 0, {})
    spectra = {"a/layer0": torch.rand(9, dtype=torch.float64), "a/layer3": torch.rand(5, dtype=torch.float64)}
    for step in (0, 12):
        file = writer.write_spectra(step, {key: value + step for key, value in spectra.items()})
        for key in spectra:
            writer.write(record(step, layer=key, spectrum=(file, key)))
    writer.close()
    for line in read_records(path):
        kept = read_spectra(path, line)
        torch.testing.assert_close(kept.double(), spectra[line["layer"]] + line["step"], rtol=1e-6, atol=0)
    assert sorted(p.name for p in (tmp_path / "runs" / "g-spectra").iterdir()) == [
        "step-000000000.safetensors",
        "step-000000012.safetensors",
    ]
    moved = tmp_path / "moved"
    (tmp_path / "runs").rename(moved)  # the records name their spectra relative to themselves
    assert len(read_spectra(moved / "g.jsonl", read_records(moved / "g.jsonl")[0])) == 9


def test_no_spectrum_is_said(tmp_path: Path) -> None:
    path = run(tmp_path / "g.jsonl", [4])
    with pytest.raises(ValueError, match=r"no spectrum was kept at step 4: run with spectra=True"):
        read_spectra(path, read_records(path)[0])


def test_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = read_records(run(tmp_path / "g.jsonl", [0, 10]), as_frame=True)
    assert isinstance(frame, pandas.DataFrame)
    assert frame["step"].tolist() == [0, 10]
    assert frame["rankme"].tolist() == [0.1, 10.1]
    assert frame["alpha_req"].isna().all()


def test_missing_metrics_are_null(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "g.jsonl", 0, {})
    writer.write(record(0, metrics={"rankme": 2.0}))
    (line,) = read_records(tmp_path / "g.jsonl")
    assert [line[name] for name in METRIC_NAMES] == [2.0] + [None] * (len(METRIC_NAMES) - 1)


_FULL = """
import resource, signal, sys
from collections.abc import Callable
from pathlib import Path
from geomcallbacks.running.writer import RecordWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write past the limit fails, as on a full disk
writer = RecordWriter(sys.argv[1], 0, {})
written = []
for step in range(40):
    if step in (10, 25):
        room = int(sys.argv[2]) + Path(sys.argv[1]).stat().st_size if step == 10 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        writer.write({"step": step, "text": "x" * 3000})
        written.append(step)
    except OSError:
        pass
writer.close()
print(written)
"""


@pytest.mark.fault
@pytest.mark.parametrize("room", [0, 1, 2999, 3100, 10_000])
def test_disk_that_was_full_for_a_while(tmp_path: Path, room: int, tally: Callable[..., None]) -> None:
    """Lines that could not be written are missing, and none is torn: what follows them can be read."""
    path = tmp_path / "g.jsonl"
    run = subprocess.run(
        [sys.executable, "-c", _FULL, str(path), str(room)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    written = json.loads(run.stdout)
    assert set(range(10)) | set(range(25, 40)) <= set(written)
    assert len(written) <= 25 + room // 3000
    assert [record["step"] for record in read_records(path)] == written
    tally("full disk", injected=15, survived=15)
