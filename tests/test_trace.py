"""`geomcallbacks trace`: the callbacks' numbers from saved checkpoints, whatever happens in between."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_cache
import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import close_session, constants
from pretrain import PretrainSettings
from pretrain import main as pretrain
from transformers import AutoModelForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet, read_records, read_spectra
from geomcallbacks.cli import main
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.settings import Settings
from geomcallbacks.trace import command as trace_command
from geomcallbacks.trace import trace
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.file import behaviour_out, default_out
from geomcallbacks.trace import tracer
from geomcallbacks.trace import Reading
from geomcallbacks.trace.probe_source import ProbeSource, labelled

ROOT = Path(__file__).parents[1]
SETTINGS = {"alpha_window": tiny.WINDOW, "batch_size": 16}
NEOX = {"step0": 0, "step8": 1, "step1000": 2, "main": 2}
OLMO = {"stage1-step1000-tokens2B": 3, "stage1-step2000-tokens4B": 4, "stage2-ingredient1-step10-tokens1B": 5}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with a GPT-NeoX and an OLMo-2 model under several revisions."""
    folder = tmp_path_factory.mktemp("hub")
    for revision, seed in NEOX.items():
        hub_cache.add_revision(folder, "org/neox", revision, hub_cache.model_files(seed))
    for revision, seed in OLMO.items():
        hub_cache.add_revision(folder, "org/olmo", revision, hub_cache.model_files(seed, "olmo2"))
    hub_cache.add_revision(folder, "org/mute", "main", hub_cache.model_files(0, tokenizer=False))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.texts(100)))
    return file


@pytest.fixture
def read(cache: Path) -> Reading:
    return Reading(cache_dir=str(cache), device="cpu")


@pytest.fixture
def source(texts: Path) -> ProbeSource:
    return ProbeSource(str(texts), rows=80, length=40)


def values(record: dict[str, Any]) -> list[float]:
    return [record[name] for name in METRIC_NAMES]


def command(*arguments: object, cache: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "HF_HUB_OFFLINE")
    env = {key: value for key, value in os.environ.items() if key not in own}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_CACHE": str(cache)} if cache else {}
    return subprocess.Popen(
        [sys.executable, "-m", "geomcallbacks", "trace", *map(str, arguments)],
        env=env | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    out, error = process.communicate(timeout=240)
    assert process.returncode == status, (process.returncode, out, error[-3000:])
    return out + error


# Live equals traced.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "return", "def", "self", "value", "import", "for"]
    with (folder / "texts.jsonl").open("w") as file:
        for _ in range(150):
            text = "\n".join(" ".join(rng.choices(words, k=8)) + f" {rng.randrange(10**4)}" for _ in range(12))
            file.write(json.dumps({"text": text}) + "\n")

    def run(name: str, **changed: Any) -> Path:
        settings: dict[str, Any] = dict(
            output_dir=str(folder / name), dataset=str(folder / "texts.jsonl"), vocab_size=300, hidden_size=16,
            layers=1, updates=12, batch_size=4, seq_length=16, warmup=4, threads=1, probe_rows=24, probe_length=16,
            probe_batch=10, positions="4", alpha_first=2, alpha_last=12, accelerator="cpu", wandb="disabled",
        )  # fmt: skip
        pretrain(PretrainSettings(**(settings | changed)))
        return folder / name

    return run


@pytest.mark.parametrize(
    "changed",
    [{}, {"architecture": "olmo2", "positions": "all"}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}],
    ids=str,
)
def test_live_equals_traced(pretrained: Callable[..., Path], changed: dict[str, str]) -> None:
    run = pretrained("-".join(changed.values()) or "plain", **changed)
    assert main(["trace", str(run), "--device", "cpu"]) == 0
    live, traced = read_records(run / "geometry.jsonl"), read_records(run / "geometry-trace.jsonl")
    assert len(live) == len(traced) >= 9
    same = ("step", "tokens", "probe", "fingerprint", "layer", "positions", "n", "d", "alpha_window")
    for before, after in zip(live, traced, strict=True):
        for key in (*same, "precision", "batch_size", "convention"):
            assert before[key] == after[key], key
        assert before["module"] == f"model.{after['module']}"  # inside the LightningModule
        assert values(after) == pytest.approx(values(before), rel=1e-6)
        assert after["revision"] == f"step-{before['step']:06d}"
        np.testing.assert_allclose(
            read_spectra(run / "geometry-trace.jsonl", after), read_spectra(run / "geometry.jsonl", before), rtol=1e-4
        )


def test_what_the_user_gives_replaces_what_was_recorded(pretrained: Callable[..., Path], tmp_path: Path) -> None:
    run, out = pretrained("given", updates=2), tmp_path / "other.jsonl"
    more = ["--layers", "0", "-1", "--positions", "last", "--alpha-window", "2", "6", "--batch-size", "7"]
    assert main(["trace", str(run), "--out", str(out), "--precision", "bf16", "--device", "cpu", *more]) == 0
    records = read_records(out)
    assert {record["layer"] for record in records} == {"layer0", "layer1"}
    said = {(r["positions"], r["batch_size"], r["precision"], tuple(r["alpha_window"])) for r in records}
    assert said == {("last", 7, "bf16", (2, 6))}


def test_a_batch_that_memory_had_halved_is_measured_so_again(pretrained: Callable[..., Path]) -> None:
    run = pretrained("halved", updates=2)
    lines = (run / "geometry.jsonl").read_text().splitlines()
    lines[-1] = lines[-1].replace('"batch_size": 10', '"batch_size": 5')
    (run / "geometry.jsonl").write_text("\n".join(lines) + "\n")
    trace(run, reading=Reading(device="cpu"))
    single = run / "checkpoints" / "step-000002"  # one checkpoint alone is read as its run states, too
    trace(single, reading=Reading(device="cpu"))
    (alone,) = read_records(single / "geometry-trace.jsonl")
    assert (alone["step"], alone["batch_size"], alone["positions"]) == (2, 5, 4)
    assert values(alone) == values(read_records(run / "geometry-trace.jsonl")[-1])
    assert [record["batch_size"] for record in read_records(run / "geometry-trace.jsonl")] == [10, 10, 5]


def test_a_probe_that_was_not_kept_must_be_given(pretrained: Callable[..., Path]) -> None:
    run = pretrained("unkept", updates=1)
    kept = ProbeSet.load(run / "probe.safetensors")
    (run / "probe.safetensors").unlink()
    # Beside the records stands another copy, as every run leaves it: options are not needed.
    out = run / "own.jsonl"
    assert main(["trace", str(run), "--device", "cpu", "--out", str(out)]) == 0
    assert {record["fingerprint"] for record in read_records(out)} == {kept.fingerprint}
    assert [values(r) for r in read_records(out)] == [
        pytest.approx(values(r), rel=1e-6) for r in read_records(run / "geometry.jsonl")
    ]
    shutil.rmtree(run / "geometry-probes")
    with pytest.raises(ValueError, match=r"measured on probe 'probe' \(\w{16}\), which is not kept.*--probe"):
        trace(run)
    assert not trace(run, probes=kept).failed


# Revisions of a hub model, from the cache.


def test_revisions_of_the_cache_are_measured_as_an_independent_reference_does(
    cache: Path, read: Reading, tmp_path: Path, source: ProbeSource
) -> None:
    out = tmp_path / "neox.jsonl"
    summary = trace("org/neox", revisions="all", probes=source, settings=SETTINGS, out=out, reading=read)
    assert summary.measured == ["org/neox@step0", "org/neox@step8", "org/neox@step1000"]
    records = read_records(out)
    assert [(r["model"], r["revision"], r["step"]) for r in records] == [
        ("org/neox", f"step{n}", n) for n in (0, 8, 1000)
    ]
    assert {r["precision"] for r in records} == {"fp32"}
    probe = source.build(tiny.tokenizer())
    assert {r["fingerprint"] for r in records} == {probe.fingerprint}
    for record, revision in zip(records, ("step0", "step8", "step1000"), strict=True):
        folder = cache / "models--org--neox" / "snapshots" / hub_cache.commit_of("org/neox", revision)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            rows = [
                model(ids[None, :length], output_hidden_states=True).hidden_states[-1][0, -1]
                for ids, length in zip(probe.input_ids_nt, probe.lengths_n, strict=True)
            ]
        features = torch.stack(rows).double().numpy()
        eigenvalues = np.linalg.eigvalsh(np.cov(features.T))[::-1]
        share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
        assert record["rankme"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
        ranks = np.arange(tiny.WINDOW[0], tiny.WINDOW[1] + 1)
        slope = np.polyfit(np.log(ranks), np.log(eigenvalues[ranks - 1]), 1, w=np.sqrt(1 / ranks))[0]
        assert record["alpha_req"] == pytest.approx(-slope, rel=1e-4)


def test_tokens_and_stages_of_olmo_names(read: Reading, tmp_path: Path) -> None:
    trace("org/olmo", revisions="all", probes=tiny.probe(), settings=SETTINGS, out=tmp_path / "o.jsonl", reading=read)
    found = [(r["step"], r["tokens"]) for r in read_records(tmp_path / "o.jsonl")]
    assert found == [(1000, 2 * 10**9), (2000, 4 * 10**9), (2010, 5 * 10**9)]


def test_several_models_are_one_curve(read: Reading, tmp_path: Path) -> None:
    models = ["org/neox@step0", "org/olmo@stage1-step1000-tokens2B", "org/neox"]
    out = tmp_path / "curve.jsonl"
    trace(models, probes={"a": tiny.probe(), "b": tiny.probe(70, 16)}, settings=SETTINGS, out=out, reading=read)
    found = [(r["step"], r["model"], r["revision"], r["probe"]) for r in read_records(out)]
    assert found[::2] == [
        (0, "org/neox", "step0", "a"),
        (1, "org/olmo", "stage1-step1000-tokens2B", "a"),
        (2, "org/neox", "main", "a"),
    ]
    assert [probe for *_, probe in found] == ["a", "b"] * 3
    with pytest.raises(ValueError, match=r"begun with other trace: models was \['org/neox@step0'.*is \['org/neox'\]"):
        trace("org/neox", probes=tiny.probe(), settings=SETTINGS, out=out, reading=read)


# Stopped and started, broken and mended.


def test_a_stopped_trace_goes_on_and_a_broken_checkpoint_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for revision, seed in (("step0", 0), ("step8", 1), ("step64", 2)):
        hub_cache.add_revision(tmp_path, "org/x", revision, hub_cache.model_files(seed))
    broken = tmp_path / "models--org--x" / "snapshots" / hub_cache.commit_of("org/x", "step8") / "model.safetensors"
    whole = broken.read_bytes()
    broken.resolve().write_bytes(whole[: len(whole) // 2])
    out, probe = tmp_path / "x-geometry.jsonl", tmp_path / "probe.safetensors"
    tiny.probe().save(probe)
    arguments = {"probes": tiny.probe(), "settings": SETTINGS, "out": out}
    read = Reading(cache_dir=str(tmp_path))
    summary = trace("org/x", revisions="step0,step8,step64", reading=read, **arguments)
    assert summary.exit_status == 1
    assert list(summary.failed) == ["org/x@step8"]
    assert "org/x@step8 was not measured (SafetensorError" in capsys.readouterr().err
    assert [record["step"] for record in read_records(out)] == [0, 64]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    kinds = [(line["kind"], line.get("step")) for line in lines]
    assert kinds == [("header", None), ("record", 0), ("skip", 8), ("record", 64)]
    kept = out.read_text().splitlines()

    broken.resolve().write_bytes(whole)
    again = trace("org/x", revisions="all", reading=read, **arguments)
    assert (again.measured, again.before, again.exit_status) == (["org/x@step8"], 2, 0)
    now = out.read_text().splitlines()
    assert [now[0], now[1], now[3]] == [kept[0], kept[1], kept[3]]  # measured once, untouched since
    assert [record["step"] for record in read_records(out)] == [0, 8, 64]
    assert trace("org/x", revisions="all", reading=read, **arguments).measured == []


def test_other_settings_or_probes_are_refused_with_both_values(read: Reading, tmp_path: Path) -> None:
    first = {"probes": tiny.probe(), "settings": SETTINGS, "out": tmp_path / "a.jsonl", "reading": read}
    trace("org/neox", revisions="step0", **first)
    for changed, message in [
        ({"settings": SETTINGS | {"positions": 2}}, "other settings: positions was 'last', is 2"),
        ({"probes": tiny.probe(70)}, "other probes: probe was {'fingerprint'.*is {'fingerprint'"),
        ({"reading": Reading(cache_dir=read.cache_dir, dtype="bf16")}, "other trace: dtype was 'fp32', is 'bf16'"),
    ]:
        with pytest.raises(ValueError, match=message):
            trace("org/neox", revisions="step0", **(first | changed))
    (tmp_path / "live.jsonl").write_text('{"kind": "header", "schema": 1, "run_id": "x", "resumed_from": null}\n')
    with pytest.raises(ValueError, match=r"live\.jsonl is the record file of a training run: give another --out"):
        trace("org/neox", **(first | {"out": tmp_path / "live.jsonl"}))


def test_a_killed_process_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, out, hub = tmp_path / "probe.safetensors", tmp_path / "g.jsonl", tmp_path / "hub"
    tiny.probe(300, 60).save(probe)  # row by row slow enough to be met in the middle
    for seed in range(7):
        hub_cache.add_revision(hub, "org/slow", f"step{seed}", hub_cache.model_files(seed))
    arguments = ["org/slow", "--revisions", "all", "--probe", probe, "--alpha-window", 2, 8, "--out", out]
    process = command(*arguments, "--batch-size", 1, cache=hub, HF_HUB_OFFLINE="1")
    deadline = time.monotonic() + 200
    while (not out.exists() or not read_records(out)) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    seen = read_records(out)
    assert 1 <= len(seen) < 6

    measure = tracer.geometry_lines

    def stopped(plan: Any, model: torch.nn.Module, checkpoint: Any, **more: Any) -> Any:
        if checkpoint.step > len(seen):
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return measure(plan, model, checkpoint, **more)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    with monkeypatch.context() as patched:
        patched.setattr(tracer, "geometry_lines", stopped)
        assert main(["trace", *map(str, arguments), "--batch-size", "1", "--device", "cpu"]) == 130
    signal.signal(signal.SIGINT, kept)
    assert "the same command goes on" in capsys.readouterr().err
    again = read_records(out)
    assert again[: len(seen)] == seen
    assert len(again) == len(seen) + 1
    assert main(["trace", *map(str, arguments), "--batch-size", "1", "--device", "cpu"]) == 0
    assert f"{6 - len(seen)} measured, {len(again)} before" in capsys.readouterr().out
    assert [record["step"] for record in read_records(out)] == list(range(7))
    assert read_records(out)[: len(again)] == again


def test_lightning_checkpoints_are_one_curve_without_the_torn_one(tmp_path: Path) -> None:
    for seed, step in enumerate((0, 10, 20)):
        model = tiny.model(seed=seed)
        state = {f"net.{key}": value for key, value in model.state_dict().items()}
        torch.save({"state_dict": state, "global_step": step}, tmp_path / f"seed-{seed}.ckpt")
    model.config.save_pretrained(tmp_path)
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "seed-0.ckpt").read_bytes()[:1000])
    summary = trace(tmp_path, probes=tiny.probe(), settings=SETTINGS, reading=Reading(device="cpu"))
    assert list(summary.failed) == [f"{tmp_path.name}@torn"]
    live = GeometryMonitor(tiny.probe(), **SETTINGS).measure(model, 20)
    records = read_records(tmp_path / "geometry-trace.jsonl")
    assert [record["step"] for record in records] == [0, 10, 20]
    assert values(records[-1]) == [live[0].metrics[name] for name in METRIC_NAMES]


# Several processes.


def test_two_processes_share_the_checkpoints_and_write_one_file(tmp_path: Path) -> None:
    probe = tmp_path / "probe.safetensors"
    tiny.probe().save(probe)
    folder = tmp_path / "run"
    for seed in range(5):
        tiny.model(seed=seed).save_pretrained(folder / f"checkpoint-{seed * 10}")
    (folder / "checkpoint-10" / "config.json").write_text("{}")  # broken: the second process's first
    arguments = [folder, "--probe", f"held={probe}", "--alpha-window", 2, 8, "--device", "cpu"]
    both = [
        command(*arguments, "--out", tmp_path / "two.jsonl", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    said = [ended(both[0]), ended(both[1], 1)]
    assert "3 measured" in said[0]
    assert "1 measured, 1 failed" in said[1]
    assert main(["trace", *map(str, arguments), "--out", str(tmp_path / "one.jsonl")]) == 1
    two, one = read_records(tmp_path / "two.jsonl"), read_records(tmp_path / "one.jsonl")
    assert [record["step"] for record in two] == [0, 20, 30, 40]
    for mine, theirs in zip(one, two, strict=True):
        assert values(mine) == values(theirs)
    assert not list(tmp_path.glob(".*"))  # no scratch file is left


def test_the_next_checkpoint_is_fetched_while_one_is_measured(
    read: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {name: threading.Event() for name in ("step0", "step8", "step1000")}
    fetch = Hub.fetch

    def seen(self: Hub, model: str, revision: str, **more: bool) -> Path:
        asked[revision].set()
        return fetch(self, model, revision, **more)

    ahead: list[bool] = []
    following = iter(["step8", "step1000"])

    def measure(model: torch.nn.Module) -> dict[str, float]:
        name = next(following, None)
        if name is not None:
            ahead.append(asked[name].wait(30))
        return {"one": 1.0}

    monkeypatch.setattr(Hub, "fetch", seen)
    arguments = {"settings": SETTINGS, "out": tmp_path / "g.jsonl", "reading": read, "measures": {"wait": measure}}
    trace("org/neox", revisions="all", probes=tiny.probe(), **arguments)
    assert ahead == [True, True]


# What the hub's client does online, against a hub on this machine.


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Path], None]]:
    """Lets this process talk to a hub on this machine."""

    def to(address: str, cache: Path) -> None:
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(variable, "127.0.0.1")
        close_session()  # made anew, with these settings
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
        }.items():
            monkeypatch.setattr(constants, name, value)

    yield to
    close_session()


def test_revisions_are_listed_fetched_ahead_and_evicted(
    tmp_path: Path, online: Callable[[str, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    revisions = {f"step{10**k}": hub_cache.model_files(k) | {"pytorch_model.bin": b"old"} for k in range(4)}
    revisions["main"] = revisions["step1000"]
    probe, cache, out = tmp_path / "probe.safetensors", tmp_path / "hub", tmp_path / "g.jsonl"
    tiny.probe().save(probe)
    arguments = ["--probe", probe, "--alpha-window", 2, 8, "--out", out, "--evict", "--device", "cpu"]
    asked: list[str] = []
    hub_cache.add_revision(cache, "org/x", "step10", revisions["step10"])

    def traced(*first: str) -> int:
        return main(["trace", *first, *map(str, arguments)])

    with hub_cache.serve({"org/x": revisions}, asked.append) as address:
        online(address, cache)
        assert traced("org/x", "--revisions", "step11") == 2
        assert "revision 'step11' is not one of the 5 of org/x: did you mean step1" in capsys.readouterr().err
        assert traced("org/none") == 2
        assert "'org/none' is no folder here and no model on the hub that you may read" in capsys.readouterr().err
        assert traced("org/x", "--revisions", "all") == 0
    assert [record["step"] for record in read_records(out)] == [1, 10, 100, 1000]
    fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert "pytorch_model.bin" not in fetched
    # What was there before is still there, whole; what was fetched is gone.
    snapshots = list((cache / "models--org--x" / "snapshots").iterdir())
    assert [folder.name for folder in snapshots] == [hub_cache.commit_of("org/x", "step10")]
    assert (snapshots[0] / "model.safetensors").read_bytes() == revisions["step10"]["model.safetensors"]
    assert [file.name for file in (cache / "models--org--x" / "refs").iterdir()] == ["step10"]


# Probes.


def test_files_of_all_kinds_give_the_same_probe(texts: Path, tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"body": tiny.texts(100)}).to_parquet(tmp_path / "t.parquet")
    ours = ProbeSource(str(texts), rows=50, length=40).build(tiny.tokenizer())
    columns = ProbeSource(str(tmp_path / "t.parquet"), rows=50, length=40, column="body").build(tiny.tokenizer())
    assert ours.fingerprint == columns.fingerprint
    ours.save(tmp_path / "p.safetensors")
    assert ProbeSource(str(tmp_path / "p.safetensors")).build(None).fingerprint == ours.fingerprint
    assert (ours.input_ids_nt[0, 0], len(ours)) == (1, 50)  # BOS, as the tokenizer adds it
    (tmp_path / "t.txt").write_text("\n".join(tiny.texts(40)))
    plain = ProbeSource(str(tmp_path / "t.txt"), rows=10, length=40).build(tiny.tokenizer())
    assert len(plain) == 10


def test_a_folder_is_streamed_as_a_data_set_of_the_hub_is(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    streamed = ProbeSource(str(texts.parent), rows=50, length=40)
    assert (
        streamed.build(tiny.tokenizer()).fingerprint
        == dataclasses.replace(streamed, source=str(texts)).build(tiny.tokenizer()).fingerprint
    )
    with pytest.raises(ValueError, match=r"no column 'body' \(--probe-column\): it has \['text'\]"):
        dataclasses.replace(streamed, column="body").build(tiny.tokenizer())


def test_offline_text_is_the_default_probe() -> None:
    from text.tokens import train_tokenizer

    from geomcallbacks.probing.offline import held_out_texts

    tokenizer = train_tokenizer(held_out_texts()[:3], 300)
    probe = ProbeSource().build(tokenizer)
    assert (len(probe), int(probe.lengths_n.max())) == (1024, 128)
    assert probe.fingerprint == ProbeSource("offline").build(tokenizer).fingerprint
    whole = "\n".join(held_out_texts())
    for row, length in zip(probe.input_ids_nt[:20], probe.lengths_n[:20], strict=True):
        assert tokenizer.decode(row[:length]) in whole


def test_probes_have_labels() -> None:
    assert labelled(["a.txt"]) == {"probe": "a.txt"}
    assert labelled(["web=a.txt", "code=b=c.jsonl"]) == {"web": "a.txt", "code": "b=c.jsonl"}
    assert labelled(["x/a.txt", "org/name"]) == {"a": "x/a.txt", "name": "org/name"}
    with pytest.raises(ValueError, match="two of the label 'a'"):
        labelled(["x/a.txt", "y/a.txt"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "missing.jsonl"}, "--probe missing.jsonl with --probe-rows 80: there is no such file"),
        ({"source": "missing.safetensors"}, "there is no such file"),
        ({"column": "body"}, r"no column 'body' \(--probe-column\): it has \['text'\]"),
        ({"rows": 101}, "size=101, but only 100 of 100 texts"),
        ({"source": __file__}, "of no kind that is read: give .txt"),
        ({"source": "org/none"}, "no file here, and as a hub data set it cannot be read"),
    ],
)
def test_wrong_probes_are_refused_with_a_remedy(source: ProbeSource, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(source, **changed).build(tiny.tokenizer())


# Clear errors.


def test_a_model_without_a_tokenizer_is_told_how_to_get_one(
    cache: Path, read: Reading, tmp_path: Path, source: ProbeSource
) -> None:
    arguments = {"probes": source, "settings": SETTINGS, "out": tmp_path / "m.jsonl"}
    with pytest.raises(ValueError, match=r"has no tokenizer: give one with --tokenizer FOLDER"):
        trace("org/mute", reading=read, **arguments)
    tiny.tokenizer().save_pretrained(tmp_path / "words")
    given = Reading(cache_dir=str(cache), tokenizer=str(tmp_path / "words"))
    assert trace("org/mute", reading=given, **arguments).measured == ["org/mute@main"]
    trace("org/mute", reading=read, **(arguments | {"probes": tiny.probe(), "out": tmp_path / "n.jsonl"}))  # needs none


def test_a_probe_in_another_vocabulary_is_refused(read: Reading, tmp_path: Path, source: ProbeSource) -> None:
    large = ProbeSet.from_token_ids(torch.full((40, 12), tiny.VOCABULARY))
    with pytest.raises(
        ValueError, match=r"org/neox@step0: probe 'probe' holds token id 120, and the model's vocabulary"
    ):
        trace("org/neox", revisions="step0", probes=large, settings=SETTINGS, out=tmp_path / "v.jsonl", reading=read)
    # A later checkpoint whose tokens of the same numbers are other words: the same size hides it from a look at ids.
    folder = tmp_path / "two" / "checkpoints"
    for step in (1, 2):
        tiny.model(seed=step).save_pretrained(folder / f"step-{step}")
        tiny.tokenizer().save_pretrained(folder / f"step-{step}")
    file = folder / "step-2" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"seven"'))
    summary = trace(tmp_path / "two", probes=source, settings=SETTINGS, reading=Reading(device="cpu"))
    assert list(summary.failed) == ["two@step-2"]
    assert "another vocabulary than the probe: token 11 is 'seven' there, and 'w7'" in summary.failed["two@step-2"]


def test_arguments_that_fit_no_checkpoint_end_the_command(
    cache: Path, read: Reading, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.probe().save(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=r"alpha_window=\(2, 20\) reaches past the 16 eigenvalues"):
        trace("org/neox", probes=tiny.probe(), settings={"alpha_window": (2, 20)}, out=tmp_path / "w", reading=read)
    with pytest.raises(ValueError, match="layers=7 is not in GPTNeoX"):
        trace("org/neox", probes=tiny.probe(), settings=SETTINGS | {"layers": 7}, out=tmp_path / "l", reading=read)
    assert main(["trace", "no/network", "--probe", str(tmp_path / "p.safetensors")]) == 2
    assert "'no/network' is no folder here; as a hub name, it is not in the hub's cache" in capsys.readouterr().err
    assert main(["trace", str(tmp_path / "nowhere")]) == 2
    assert "is no folder, and no hub name" in capsys.readouterr().err


# Behaviour beside geometry.


class Norm:
    """The size of the embedding."""

    fingerprint = "n0rm"

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        assert not model.training
        return {"embedding": float(model.get_input_embeddings().weight.detach().double().norm())}  # type: ignore[operator]


def test_behaviour_is_measured_beside_geometry_and_goes_on_by_itself(
    cache: Path, read: Reading, tmp_path: Path
) -> None:
    out = tmp_path / "x-geometry.jsonl"
    first = {"revisions": "all", "probes": tiny.probe(), "settings": SETTINGS, "out": out, "reading": read}
    trace("org/neox", **(first | {"revisions": "step0"}))
    made: list[Any] = []

    def measures(tokenizer: Any, probes: dict[str, ProbeSet], settings: Settings) -> dict[str, Norm]:
        assert probes.keys() == {"probe"}
        assert settings.alpha_window == tiny.WINDOW
        made.append(tokenizer)
        return {"norm": Norm()}

    summary = trace("org/neox", measures=measures, **first)
    assert summary.behaviour == tmp_path / "x-behaviour.jsonl"
    assert summary.before == 0  # step0 lacked its behaviour
    assert made[0].convert_ids_to_tokens(4) == "w0"
    found = read_records(tmp_path / "x-behaviour.jsonl")
    expected = [float(tiny.model(seed=seed).get_input_embeddings().weight.double().norm()) for seed in range(3)]
    assert [record["norm/embedding"] for record in found] == pytest.approx(expected, rel=1e-12)
    assert [(record["step"], record["revision"]) for record in found] == [
        (0, "step0"),
        (8, "step8"),
        (1000, "step1000"),
    ]
    assert len(read_records(out)) == 3
    assert trace("org/neox", measures=measures, **first).before == 3


def test_the_command_line_gives_probes_and_settings() -> None:
    def parsed(*arguments: str) -> tuple[Any, dict[str, Any]]:
        parser = argparse.ArgumentParser()
        trace_command.add_arguments(parser)
        given = parser.parse_args(["model", *arguments])
        return trace_command.probes_of(given), trace_command.settings_of(given)

    assert parsed() == (None, {})
    # Li et al. 2025: 15,000 FineWeb texts of at most 512 tokens, the last position, ranks 12 to 100.
    fineweb = ProbeSource("HuggingFaceFW/fineweb", 15_000, 512, config="sample-10BT")
    assert parsed("--preset", "paper") == ({"probe": fineweb}, {"alpha_window": (12, 100), "positions": "last"})
    probes, settings = parsed("--preset", "paper", "--probe", "a=x.jsonl", "b=y.txt", "--probe-rows", "9")
    assert probes == {"a": ProbeSource("x.jsonl", 9, 512), "b": ProbeSource("y.txt", 9, 512)}
    probes, settings = parsed("--probe", "x.jsonl", "--layers", "0", "-1", "h.2", "--positions", "4", "--intervals")
    assert probes == {"probe": ProbeSource("x.jsonl")}
    assert settings == {"layers": [0, -1, "h.2"], "positions": 4, "intervals": True}
    assert parsed("--layers", "0")[1] == {"layers": 0}


def test_default_names(tmp_path: Path) -> None:
    assert default_out(["EleutherAI/pythia-160m"]) == Path("pythia-160m-geometry.jsonl")
    assert default_out(["a/b@main", "c/d"]) == Path("b-to-d-geometry.jsonl")
    (tmp_path / "checkpoints").mkdir()
    assert (
        default_out([str(tmp_path / "checkpoints")])
        == default_out([str(tmp_path)])
        == tmp_path / "geometry-trace.jsonl"
    )
    assert behaviour_out(Path("r/pythia-geometry.jsonl")) == Path("r/pythia-behaviour.jsonl")
    assert behaviour_out(Path("r/mine.jsonl")) == Path("r/mine-behaviour.jsonl")
