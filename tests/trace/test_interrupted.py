"""A trace that is stopped, killed, moved, shared or fetched from the hub: nothing lost, repeated or left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hub_cache
import pytest
import tiny
import torch
from huggingface_hub import constants
from run_folders import live

from geomcallbacks import read_records
from geomcallbacks.cli import main
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.trace import Reading, trace, tracer

ROOT = Path(__file__).parents[2]
CPU = Reading(device="cpu")


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "geomcallbacks", "trace", *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_stopped_trace_goes_on_and_a_broken_checkpoint_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = live(tmp_path, (0, 8, 64))
    broken, out = run / "checkpoint-8" / "model.safetensors", run / "geometry-trace.jsonl"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    summary = trace(run, reading=CPU)
    assert (summary.exit_status, len(summary.failed), summary.path) == (1, 1, out)
    assert "@checkpoint-8 was not measured (SafetensorError" in capsys.readouterr().err
    kept = out.read_text().splitlines()
    kinds = [(line["kind"], line.get("step")) for line in map(json.loads, kept)]
    assert kinds == [("header", None), ("record", 0), ("skip", 8), ("record", 64)]

    broken.write_bytes(whole)
    again = trace(run, reading=CPU)
    assert (again.measured, again.before, again.exit_status) == ([f"{run.name}@checkpoint-8"], 2, 0)
    now = out.read_text().splitlines()
    assert [now[0], now[1], now[3]] == [kept[0], kept[1], kept[3]]  # measured once, untouched since
    assert [record["step"] for record in read_records(out)] == [0, 8, 64]
    assert trace(run, reading=CPU).measured == []


def test_a_killed_process_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, out = tmp_path / "probe.safetensors", tmp_path / "g.jsonl"
    tiny.probe(300, 60).save(probe)  # row by row slow enough to be met in the middle
    for seed in range(7):
        tiny.model(seed=seed).save_pretrained(tmp_path / "slow" / f"checkpoint-{seed}")
    options = ("--probe", probe, "--alpha-window", 2, 8, "--out", out, "--batch-size", 1, "--device", "cpu")
    arguments = [*map(str, (tmp_path / "slow", *options))]
    process = command(*arguments)
    while not out.exists() or not read_records(out):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    seen = read_records(out)
    assert 1 <= len(seen) < 6

    measure = tracer.geometry_lines

    def stopped(plan: Any, model: torch.nn.Module, checkpoint: Any, path: Path) -> Any:
        if checkpoint.step > len(seen):
            raise KeyboardInterrupt
        return measure(plan, model, checkpoint, path)

    with monkeypatch.context() as patched:
        patched.setattr(tracer, "geometry_lines", stopped)
        assert main(["trace", *arguments]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    again = read_records(out)
    assert again[: len(seen)] == seen
    assert len(again) == len(seen) + 1
    assert main(["trace", *arguments]) == 0
    assert f"{6 - len(seen)} measured, {len(again)} before" in capsys.readouterr().out
    assert [record["step"] for record in read_records(out)] == list(range(7))
    assert read_records(out)[: len(again)] == again


def test_two_processes_share_the_checkpoints_and_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, both = live(tmp_path / "run", range(0, 50, 10)), tmp_path / "both.jsonl"
    (run / "checkpoint-10" / "config.json").write_text("{}")  # broken: the second process's first
    arguments = [*map(str, (run, "--out", both, "--device", "cpu"))]
    other = command(*arguments, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():  # the first is this one
        monkeypatch.setenv(name, value)
    assert main(["trace", *arguments]) == 0
    out, error = other.communicate(timeout=240)
    assert other.returncode == 1, error[-3000:]
    assert "1 measured, 0 before, 1 failed" in out
    assert "3 measured, 0 before, 0 failed" in capsys.readouterr().out
    found, alone = read_records(both), read_records(run / "geometry.jsonl")
    del alone[1]
    for name in ("step", *METRIC_NAMES):
        assert [record[name] for record in found] == [record[name] for record in alone]
    assert not list(tmp_path.glob(".*"))  # no scratch file is left


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_revisions_are_listed_fetched_and_evicted(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    revisions = {f"step{10**k}": hub_cache.model_files(k) | {"pytorch_model.bin": b"old"} for k in range(4)}
    if weights == "pytorch_model.bin":
        for seed, files in enumerate(revisions.values()):
            torch.save(tiny.model(seed=seed).state_dict(), tmp_path / weights)
            files[weights] = (tmp_path / weights).read_bytes()
            del files["model.safetensors"]
    probe, cache, out = tmp_path / "probe.safetensors", tmp_path / "hub", tmp_path / "g.jsonl"
    tiny.probe().save(probe)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    kept = hub_cache.add_revision(cache, "org/x", "step10", revisions["step10"])
    fetched = hub_cache.serve(monkeypatch, "org/x", revisions | {"main": revisions["step1000"]})
    arguments = [*map(str, ("--probe", probe, "--alpha-window", 2, 8, "--out", out, "--evict", "--device", "cpu"))]
    assert main(["trace", "org/none", *arguments]) == 2
    assert "'org/none' is no folder here and no model on the hub that you may read" in capsys.readouterr().err
    assert main(["trace", "org/x", "--revisions", "all", *arguments]) == 0
    assert [record["step"] for record in read_records(out)] == [1, 10, 100, 1000]
    assert {name for name in fetched if name.startswith(("model", "pytorch"))} == {weights}
    # What was there before is still there, whole; what was fetched is gone.
    assert [folder.name for folder in kept.parent.iterdir()] == [kept.name]
    assert (kept / weights).read_bytes() == revisions["step10"][weights]
    assert [file.name for file in (kept.parent.parent / "refs").iterdir()] == ["step10"]
