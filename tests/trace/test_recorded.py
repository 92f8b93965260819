"""What a run's folder says of how it was measured, and what the user says in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from run_folders import live

from geomcallbacks import read_records
from geomcallbacks.cli import main
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.record import read_lines
from geomcallbacks.trace import Reading, trace
from geomcallbacks.trace.recorded import Recorded, read_recorded

CPU = Reading(device="cpu")


def values(path: Path) -> list[list[float]]:
    return [[record[name] for name in METRIC_NAMES] for record in read_records(path)]


def test_what_the_user_gives_replaces_what_was_recorded(tmp_path: Path) -> None:
    run, out = live(tmp_path / "run", positions=3), tmp_path / "other.jsonl"
    more = ["--layers", "0", "-1", "--positions", "last", "--alpha-window", "2", "6", "--batch-size", "7"]
    assert main(["trace", str(run), "--out", str(out), "--precision", "bf16", "--device", "cpu", *more]) == 0
    records = read_records(out)
    assert {record["layer"] for record in records} == {"layer0", "layer3"}
    found = {(r["positions"], r["batch_size"], r["precision"], tuple(r["alpha_window"])) for r in records}
    assert found == {("last", 7, "bf16", (2, 6))}


def test_a_batch_that_memory_had_halved_is_measured_so_again(tmp_path: Path) -> None:
    run = live(tmp_path, (0, 1, 2), positions=4)
    lines = (run / "geometry.jsonl").read_text().splitlines()
    lines[-1] = lines[-1].replace('"batch_size": 32', '"batch_size": 16')
    (run / "geometry.jsonl").write_text("\n".join(lines) + "\n")
    trace(run, reading=CPU)
    assert [record["batch_size"] for record in read_records(run / "geometry-trace.jsonl")] == [32, 32, 16]
    trace(run / "checkpoint-2", reading=CPU)  # one checkpoint alone is read as its run states, too
    (alone,) = read_records(run / "checkpoint-2" / "geometry-trace.jsonl")
    assert (alone["step"], alone["batch_size"], alone["positions"]) == (2, 16, 4)
    assert values(run / "checkpoint-2" / "geometry-trace.jsonl") == values(run / "geometry-trace.jsonl")[-1:]


def test_a_probe_that_was_not_kept_must_be_given(tmp_path: Path) -> None:
    run = live(tmp_path)
    kept = tiny.probe()
    shutil.rmtree(run / "_geometry-probes")
    with pytest.raises(ValueError, match=r"measured on probe 'probe' \(\w{16}\), which is not kept.*--probe"):
        trace(run, reading=CPU)
    assert not trace(run, probes=kept, reading=CPU, out=run / "given.jsonl").failed
    tiny.probe(seed=9).save(run / f"{kept.fingerprint}.safetensors")  # found by what it holds, not by its name
    kept.save(run / "any name.safetensors")
    assert not trace(run, reading=CPU).failed
    assert values(run / "geometry-trace.jsonl") == values(run / "given.jsonl") == values(run / "geometry.jsonl")


def test_the_latest_start_of_a_run_is_read_and_what_it_began_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(tmp_path, from_scratch=True)
    live(tmp_path, positions=3, from_scratch=False)
    with (tmp_path / "geometry-2.jsonl").open("a") as file:  # settings that are none are passed over
        file.write('{"kind": "header", "schema": 1, "run_id": "x", "resumed_from": 1, "settings": []}\n')
    found = read_recorded(tmp_path)
    assert (found.settings["positions"], found.from_scratch) == (3, False)
    (tmp_path / "geometry-3.jsonl").write_text((tmp_path / "geometry.jsonl").read_text().splitlines()[0] + "\n")
    assert read_recorded(tmp_path).settings == found.settings  # the third ended before it measured
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    summary = trace(f"~/{tmp_path.name}", reading=CPU)  # settings, probe and the place of the records are the run's
    assert summary.path == tmp_path / "geometry-trace.jsonl"
    assert read_lines(summary.path)[0]["settings"]["from_scratch"] is False
    assert [record["positions"] for record in read_records(summary.path)] == [3, 3]


def test_an_empty_record_file_is_announced(tmp_path: Path) -> None:
    (tmp_path / "geometry.jsonl").touch()
    with pytest.warns(UserWarning, match=r"geometry\.jsonl holds no measurement: probe and settings are the defaults"):
        assert read_recorded(tmp_path) == Recorded()
