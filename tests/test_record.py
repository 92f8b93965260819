"""What a run leaves behind can be read, whole, after every kind of end; and what was changed by anything is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hostile import no_hang, refused, survive

from geomcallbacks import GeometryRecord, read_records, read_spectra
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.phases.table import phases_of_file
from geomcallbacks.record import read_lines
from geomcallbacks.running.record_writer import RecordWriter, record_lines

ROOT = Path(__file__).parent.parent
NAME = "weiß/中"  # several bytes a letter, so that a torn line may end inside one


def record(step: int, **changes: Any) -> GeometryRecord:
    fields = dict(
        step=step, tokens=None, probe=NAME, fingerprint="0123456789abcdef", layer="layer3", module="model",
        positions="last", n=64, d=16, metrics=dict.fromkeys(METRIC_NAMES, 0.1 + step) | {"alpha_req": None},
        reasons={"alpha_req": "no"}, alpha_window=(2, 8), precision="fp32", batch_size=32, seconds_forward=0.5,
        seconds_spectrum=0.25,
    )  # fmt: skip
    return GeometryRecord(**{**fields, **changes})


def run(path: Path, steps: list[int], start: int = 0, run_id: str | None = None) -> Path:
    writer = RecordWriter(path, start, {"settings": {}}, run_id)
    writer.write(*record_lines([record(step) for step in steps], None))
    writer.close()
    writer.close()
    return writer.path


def id_of(path: Path) -> str | None:
    """The run of a file; None where not even its header is whole."""
    lines = read_lines(path)
    return lines[0]["run_id"] if lines else None


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_records(path)]


# --- lines --------------------------------------------------------------------------------------------------------


def test_a_line_carries_everything_and_floats_come_back_exactly(tmp_path: Path) -> None:
    path, value = tmp_path / "g.jsonl", float(torch.rand(1, dtype=torch.float64)) / 3
    writer = RecordWriter(path, 0, {"settings": {}})
    full = record(7, tokens=9, intervals={"rankme": (1.0, 2.0)}, notes=["halved"], metrics={"rankme": value}, phase="x")
    writer.skip(3, "budget", cost=1.5)
    writer.write(*record_lines([full], None))
    header, skip, _ = read_lines(path)  # on disk before the writer is closed
    assert (header["kind"], header["schema"], header["resumed_from"], header["settings"]) == ("header", 1, None, {})
    assert skip == {"kind": "skip", "step": 3, "reason": "budget", "cost": 1.5}
    assert read_records(path) == [
        {
            "step": 7, "tokens": 9, "probe": NAME, "fingerprint": "0123456789abcdef", "layer": "layer3",
            "module": "model", "positions": "last", "n": 64, "d": 16, "alpha_window": [2, 8], "precision": "fp32",
            "batch_size": 32, "seconds_forward": 0.5, "seconds_spectrum": 0.25, "reasons": {"alpha_req": "no"},
            "intervals": {"rankme": [1.0, 2.0]}, "spectrum": None, "notes": ["halved"], "phase": "x",
            "convention": "eigenvalues of the centred covariance over n-1, eps=0, no truncation",
            "weights": "training", "storage": None,
            **dict.fromkeys(METRIC_NAMES), "rankme": value,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_no_nan_in_the_file(tmp_path: Path, value: float) -> None:
    writer = RecordWriter(tmp_path / "g.jsonl", 0, {})
    with pytest.raises(ValueError, match="JSON"):
        writer.write(record(0, metrics={"rankme": value}).to_dict())
    writer.write(record(1).to_dict())
    assert steps(tmp_path / "g.jsonl") == [1]


def test_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = read_records(run(tmp_path / "g.jsonl", [0, 10]), as_frame=True)
    assert isinstance(frame, pandas.DataFrame)
    assert frame["rankme"].tolist() == [0.1, 10.1]
    assert frame["alpha_req"].isna().all()


def test_spectra_are_kept_and_read(tmp_path: Path) -> None:
    path, kept = tmp_path / "runs" / "g.jsonl", {"layer0": torch.rand(9).double(), "layer3": torch.rand(5).double()}
    writer = RecordWriter(path, 0, {})
    for step in (0, 12):
        found = [record(step, layer=name, eigenvalues=values + step) for name, values in kept.items()]
        writer.write(*record_lines([*found, record(step, layer="none")], writer.keep_spectra(step, found)))
    writer.close()
    assert sorted(p.name for p in (tmp_path / "runs" / "g-spectra").iterdir()) == [
        "step-000000000.safetensors",
        "step-000000012.safetensors",
    ]
    (tmp_path / "runs").rename(tmp_path / "moved")  # the records name their spectra relative to themselves
    for line in read_records(tmp_path / "moved" / "g.jsonl"):
        if line["layer"] == "none":
            with pytest.raises(ValueError, match=r"no spectrum was kept at step \d+: run with spectra=True"):
                read_spectra(tmp_path / "moved" / "g.jsonl", line)
        else:
            values = read_spectra(tmp_path / "moved" / "g.jsonl", line).double()
            torch.testing.assert_close(values, kept[line["layer"]] + line["step"], rtol=1e-6, atol=0)


# --- ends ---------------------------------------------------------------------------------------------------------


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
            there = run(path, [30], start=20, run_id=id_of(path))
            assert there == (path if cut >= ends[0] else path.with_name("g-2.jsonl" if cut else "g.jsonl")), cut
            assert steps(there) == [*wanted, 30], cut
            path.with_name("g-2.jsonl").unlink(missing_ok=True)
    torn = whole[:-20]  # killed in a record, and killed again anywhere in the lines of the next start
    path.write_bytes(torn)
    whole = run(path, [20], start=5, run_id=id_of(path)).read_bytes()
    for cut in [*range(len(torn), len(whole) - 30, 23), *range(len(whole) - 30, len(whole) + 1)]:
        path.write_bytes(whole[:cut])
        assert steps(path) == [0, *([20] if cut >= len(whole) - 1 else [])], cut


def test_resuming_drops_what_lies_beyond(tmp_path: Path) -> None:
    path = run(tmp_path / "g.jsonl", [0, 10, 20, 30])
    assert run(path, [20, 25], start=15, run_id=id_of(path)) == path
    assert steps(path) == [0, 10, 20, 25]
    assert run(path, [21], start=20, run_id=id_of(path)) == path
    assert steps(path) == [0, 10, 20, 21]
    lines = read_lines(path)
    assert len(lines) == 3 + 7  # nothing is ever taken out of the file
    assert [line["resumed_from"] for line in lines if line["kind"] == "header"] == [None, 15, 20]


def test_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "geometry.jsonl"
    path.parent.mkdir()
    path.touch()  # an empty file is free
    names = [run(path, [0, number]).name for number in (1, 2, 3)]
    assert names == ["geometry.jsonl", "geometry-2.jsonl", "geometry-3.jsonl"]
    assert steps(path.with_name("geometry-2.jsonl")) == [0, 2]
    second = id_of(path.with_name("geometry-2.jsonl"))
    assert run(path, [9], start=5, run_id=second).name == "geometry-2.jsonl"  # the run's own
    assert run(path, [9], start=5).name == "geometry-4.jsonl"  # that of nobody knows which run
    dated = tmp_path / "g-20261125103000.jsonl"
    dated.touch()  # no reason to try all names up to that number
    assert run(tmp_path / "g.jsonl", [0]).name == "g.jsonl"


HOLD = """
import sys
from geomcallbacks.running.record_writer import RecordWriter
writer = RecordWriter(sys.argv[1], int(sys.argv[2]), {}, sys.argv[3] or None)
writer.flush()
print(writer.path.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.fault
@pytest.mark.parametrize("start", [0, 5])
def test_two_processes_are_kept_apart(tmp_path: Path, start: int) -> None:
    """The other process has the file open; killed, it leaves no lock behind."""
    path = run(tmp_path / "g.jsonl", [0]) if start else tmp_path / "g.jsonl"
    mine = id_of(path) if start else None
    command, env = (
        [sys.executable, "-c", HOLD, str(path), str(start), mine or ""],
        os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout.readline().strip() == "g.jsonl"
        here = RecordWriter(path, start, {}, mine)
        here.flush()
        assert here.path.name == "g-2.jsonl"
        assert RecordWriter(path, 0, {}).path.name == "g-3.jsonl"  # within one process too
        here.close()
        other.kill()
    (tmp_path / "g-2.jsonl").unlink()
    (tmp_path / "g-3.jsonl").unlink()
    assert run(path, [9], start=5, run_id=mine or id_of(path)) == path


FULL = """
import resource, signal, sys
from pathlib import Path
from geomcallbacks.running.record_writer import RecordWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write past the limit fails, as on a full disk
path, rooms, written = Path(sys.argv[1]), [int(room) for room in sys.argv[2:]], []
writer, step = RecordWriter(path, 0, {}), 0
for room in rooms:
    for limit in (room + path.stat().st_size, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for step in range(step + 1, step + 8):
            try:
                writer.write({"step": step, "text": "x" * 3000})
                written.append(step)
            except OSError:
                pass
writer.close()
print(written)
"""


@pytest.mark.fault
def test_disk_that_was_full_for_a_while(tmp_path: Path) -> None:
    """Lines that could not be written raise, and are written when there is room again; none is torn."""
    path, rooms = tmp_path / "g.jsonl", [0, 1, 2999, 3100, 10_000]
    command = [sys.executable, "-c", FULL, str(path), *map(str, rooms)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    written = json.loads(ran.stdout)
    assert steps(path) == list(range(1, 14 * len(rooms) + 1))
    # At first none is written; behind a full disk, the first that fits takes along those before it.
    fitted = [[step for step in written if 14 * k < step <= 14 * k + 7] for k in range(len(rooms))]
    assert [len(each) for each in fitted] == [room // 3030 for room in rooms]
    assert len(written) == sum(map(len, fitted)) + 7 * len(rooms)


# --- files that somebody has changed ------------------------------------------------------------------------------

NASTY: list[Any] = [
    None, True, 0, -1, 1.5, "8", "", [], {}, [1], [1, 2], 10**30, 10**400, 1e308, 1e999, "\ud800", "\0", ["../x", "k"],
]  # fmt: skip
BYTES = [b"\0", b"\xff\xfe", b"\r\n", b"\n", b"NaN", b"[" * 20_000, b"9" * 5000, b"\xef\xbb\xbf", b'"', b"}"]


LINE = {
    "kind": "record",
    "probe": "p",
    "layer": "l",
    "n": 64,
    "d": 16,
    "alpha_window": [2, 8],
    "step": 4,
    "rankme": 9.0,
}
HEADER = {"kind": "header", "schema": 1, "run_id": "x", "resumed_from": None, "settings": {}}
WHOLE = st.sampled_from([HEADER, *(LINE | {"step": 4**k, "rankme": 2.0 + (k - 3) ** 2} for k in range(8))])
CHANGED = st.builds(
    lambda line, key, value: line | {key: value}, WHOLE, st.sampled_from([*LINE, *HEADER]), st.sampled_from(NASTY)
)
TEXTS = st.one_of(WHOLE, CHANGED).map(lambda line: json.dumps(line).encode())
TORN = st.builds(lambda text, at, damage: text[:at] + damage, TEXTS, st.integers(0, 90), st.sampled_from(BYTES))
FILES = st.builds(
    lambda pieces, end: b"\n".join(pieces) + end, st.lists(st.one_of(TEXTS, TEXTS, TORN)), st.sampled_from(BYTES)
)


def plain_reader(content: bytes) -> list[dict[str, Any]]:
    """What a file says by `json` alone, where each line can be read."""
    records: list[dict[str, Any]] = []
    for text in content.split(b"\n"):
        try:
            line = json.loads(text.decode("utf-8-sig"), parse_constant=int)  # int("NaN") is refused
        except (ValueError, RecursionError):
            continue
        if not isinstance(line, dict):
            continue
        if line.get("kind") == "header" and line.get("resumed_from") is not None:
            records = [record for record in records if record["step"] <= line["resumed_from"]]
        if line.get("kind") == "record":
            records.append({key: value for key, value in line.items() if key != "kind"})
    return records


@pytest.mark.fault
@pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_hostile_record_files(tmp_path: Path, count: int) -> None:
    file = tmp_path / "geometry.jsonl"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        for reader in (read_records, phases_of_file):
            try:
                found = reader(file)
            except (ValueError, OSError) as error:
                refused(error)
            else:
                assert reader is not read_records or found == plain_reader(content)

    survive(FILES, check, count)


@pytest.mark.fault
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000 + b"\n{}\n",
        b'{"kind": "record", "step": ' + b"9" * 10_000 + b"}\n{}\n",
        '{"kind": "record", "step": 1}\n'.encode("utf-16") * 3,
        b"\0" * 5000 + b"\n{}\n",
        b'{"kind": "record", "step": 1, "rankme": NaN}\n{}\n',
        b'{"kind": "header", "schema": 2}\n',
        b'{"kind": "header", "schema": 1, "resumed_from": "2"}\n',
        b'{"kind": "record", "step": true}\n',
        b'{"kind": "record", "rankme": 3}\n',
        *(b'{"kind": "header"}\n' + damage + b'\n{"kind": "record", "step": 1}\n' for damage in (b"no", b"[1, 2]")),
    ],
    ids=range(11),
)
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.jsonl").write_bytes(content)
    with no_hang(), pytest.raises(ValueError, match=r"g\.jsonl"):
        read_records(tmp_path / "g.jsonl")
