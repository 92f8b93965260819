"""`geomcallbacks trace`: the callbacks' numbers from saved checkpoints, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hub_cache
import micro
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
from geomcallbacks.trace import ProbeSource, Reading, trace, tracer
from geomcallbacks.trace.checkpoints.hub import Hub

ROOT = Path(__file__).parents[2]
SETTINGS = {"alpha_window": tiny.WINDOW, "batch_size": 16}
CPU = Reading(device="cpu")


def values(record: dict[str, Any]) -> list[float]:
    return [record[name] for name in METRIC_NAMES]


def save(folder: Path, seed: int = 0) -> Path:
    tiny.model(seed=seed).save_pretrained(folder)
    return folder


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    env = {key: value for key, value in os.environ.items() if key not in own}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "geomcallbacks", "trace", *map(str, arguments)],
        env=env | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# Live equals traced.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("runs")
    texts = micro.write_jsonl(folder / "texts.jsonl", [{"text": micro.module_text(seed)} for seed in range(150)])

    def run(name: str, **changed: Any) -> Path:
        settings: dict[str, Any] = dict(
            output_dir=str(folder / name), dataset=str(texts), vocab_size=300, hidden_size=16, layers=1, updates=12,
            batch_size=4, seq_length=16, warmup=4, threads=1, probe_rows=24, probe_length=16, probe_batch=10,
            positions="4", alpha_first=2, alpha_last=12, accelerator="cpu", wandb="disabled",
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


# Revisions of a hub model, from the cache.


def test_revisions_of_the_cache_are_measured_as_an_independent_reference_does(
    cache: Path, read: Reading, tmp_path: Path, source: ProbeSource
) -> None:
    out = tmp_path / "neox.jsonl"
    summary = trace("org/neox", revisions="all", probes=source, settings=SETTINGS, out=out, reading=read)
    assert summary.measured == ["org/neox@step0", "org/neox@step8", "org/neox@step1000"]
    records = read_records(out)
    probe = source.build(tiny.tokenizer())
    assert {(r["precision"], r["fingerprint"]) for r in records} == {("fp32", probe.fingerprint)}
    for record, step in zip(records, (0, 8, 1000), strict=True):
        assert (record["model"], record["revision"], record["step"]) == ("org/neox", f"step{step}", step)
        folder = cache / "models--org--neox" / "snapshots" / hub_cache.commit_of("org/neox", f"step{step}")
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
    with pytest.warns(UserWarning, match="stages are taken to go on"):
        trace("org/olmo", revisions="all", probes=tiny.probe(), settings=SETTINGS, out=tmp_path / "o", reading=read)
    found = [(r["step"], r["tokens"]) for r in read_records(tmp_path / "o")]
    assert found == [(1000, 2 * 10**9), (2000, 4 * 10**9), (2010, 5 * 10**9)]


# Several models.


def test_several_models_are_one_curve(read: Reading, tmp_path: Path) -> None:
    models = ["org/neox@step0", "org/olmo@stage1-step1000-tokens2B", "org/neox"]
    out = tmp_path / "curve.jsonl"
    trace(models, probes={"a": tiny.probe(), "b": tiny.probe(70, 16)}, settings=SETTINGS, out=out, reading=read)
    found = [(r["step"], f"{r['model']}@{r['revision']}", r["probe"]) for r in read_records(out)]
    assert found == [(k, name, probe) for k, name in enumerate([*models[:2], "org/neox@main"]) for probe in "ab"]
    with pytest.raises(ValueError, match=r"begun with other trace: models was \['org/neox@step0'.*is \['org/neox'\]"):
        trace("org/neox", probes=tiny.probe(), settings=SETTINGS, out=out, reading=read)


def test_models_of_one_folder_name_and_of_different_width_are_a_curve_after_a_stop(tmp_path: Path) -> None:
    models = [save(tmp_path / "sft" / "final"), tmp_path / "b" / "final", save(tmp_path / "dpo" / "final", 1)]
    narrow = tiny.CONFIGS["gpt_neox"]()
    narrow.hidden_size = 8
    AutoModelForCausalLM.from_config(narrow).save_pretrained(models[1])
    arguments = {"probes": tiny.probe(), "out": tmp_path / "g.jsonl", "settings": {"alpha_window": (2, 12)}}
    for before in (0, 2):  # the second start meets the misfit first
        summary = trace(models, reading=CPU, **arguments)
        assert "reaches past the 8 eigenvalues" in summary.failed[f"{models[1]}@final"]
        assert (len(summary.failed), summary.before) == (1, before)
    monitor = GeometryMonitor(tiny.probe(), alpha_window=(2, 12))
    live = [monitor.measure(tiny.model(seed=seed), 0)[0].metrics["rankme"] for seed in (0, 1)]
    found = [(r["step"], r["model"], r["rankme"]) for r in read_records(tmp_path / "g.jsonl")]
    assert found == [(2 * k, str(models[2 * k]), pytest.approx(live[k], rel=1e-6)) for k in (0, 1)]


# Stopped and started, broken and mended.


def test_a_stopped_trace_goes_on_and_a_broken_checkpoint_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for revision, seed in (("step0", 0), ("step8", 1), ("step64", 2)):
        hub_cache.add_revision(tmp_path, "org/x", revision, hub_cache.model_files(seed))
    broken = tmp_path / "models--org--x" / "snapshots" / hub_cache.commit_of("org/x", "step8") / "model.safetensors"
    whole = broken.read_bytes()
    broken.resolve().write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "x-geometry.jsonl"
    arguments = {"probes": tiny.probe(), "settings": SETTINGS, "out": out, "reading": Reading(cache_dir=str(tmp_path))}
    summary = trace("org/x", revisions="step0,step8,step64", **arguments)
    assert (summary.exit_status, list(summary.failed)) == (1, ["org/x@step8"])
    assert "org/x@step8 was not measured (SafetensorError" in capsys.readouterr().err
    kept = out.read_text().splitlines()
    kinds = [(line["kind"], line.get("step")) for line in map(json.loads, kept)]
    assert kinds == [("header", None), ("record", 0), ("skip", 8), ("record", 64)]

    broken.resolve().write_bytes(whole)
    again = trace("org/x", revisions="all", **arguments)
    assert (again.measured, again.before, again.exit_status) == (["org/x@step8"], 2, 0)
    now = out.read_text().splitlines()
    assert [now[0], now[1], now[3]] == [kept[0], kept[1], kept[3]]  # measured once, untouched since
    assert [record["step"] for record in read_records(out)] == [0, 8, 64]
    assert trace("org/x", revisions="all", **arguments).measured == []


def test_other_settings_or_probes_are_refused_with_both_values(read: Reading, tmp_path: Path) -> None:
    first = {"probes": tiny.probe(), "settings": SETTINGS, "out": tmp_path / "a.jsonl", "reading": read}
    with pytest.raises(ValueError, match="org/neox@step0: alpha_window=.* reaches past the 16 eigenvalues"):
        trace("org/neox", revisions="step0", **(first | {"settings": {"alpha_window": (2, 20)}}))
    trace("org/neox", revisions="step0", **first)  # what measured nothing does not hold the file
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
    arguments = [*map(str, arguments), "--batch-size", "1", "--device", "cpu"]
    process = command(*arguments, HF_HUB_CACHE=str(hub))
    deadline = time.monotonic() + 200
    while (not out.exists() or not read_records(out)) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    seen = read_records(out)
    assert 1 <= len(seen) < 6

    measure = tracer.geometry_lines

    def stopped(plan: Any, model: torch.nn.Module, checkpoint: Any, path: Path) -> Any:
        if checkpoint.step > len(seen):
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return measure(plan, model, checkpoint, path)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    with monkeypatch.context() as patched:
        patched.setattr(tracer, "geometry_lines", stopped)
        assert main(["trace", *arguments]) == 130
    signal.signal(signal.SIGINT, kept)
    assert "the same command goes on" in capsys.readouterr().err
    again = read_records(out)
    assert again[: len(seen)] == seen
    assert len(again) == len(seen) + 1
    assert main(["trace", *arguments]) == 0
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
    summary = trace(tmp_path, probes=tiny.probe(), settings=SETTINGS, reading=CPU)
    assert list(summary.failed) == [f"{tmp_path.name}@torn"]
    live = GeometryMonitor(tiny.probe(), **SETTINGS).measure(model, 20)
    records = read_records(tmp_path / "geometry-trace.jsonl")
    assert [record["step"] for record in records] == [0, 10, 20]
    assert values(records[-1]) == [live[0].metrics[name] for name in METRIC_NAMES]


def test_weights_of_nan_are_no_measurement(tmp_path: Path) -> None:
    model = tiny.model()
    for step, value in ((1, 1.0), (2, torch.nan)):
        model.get_input_embeddings().weight.data *= value  # type: ignore[operator]
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    summary = trace(tmp_path, probes=tiny.probe(), settings=SETTINGS, reading=CPU)
    (reason,) = summary.failed.values()
    assert "nothing can be measured of it: 64 of 64 rows are not finite" in reason
    assert [record["step"] for record in read_records(tmp_path / "geometry-trace.jsonl")] == [1]


def test_a_moved_run_and_its_checkpoints_folder_go_on(tmp_path: Path) -> None:
    tiny.probe().save(tmp_path / "probe.safetensors")
    for step in (1, 2):
        save(tmp_path / "old" / "checkpoints" / f"step-{step}", step)
    arguments = {"probes": ProbeSource(str(tmp_path / "probe.safetensors")), "settings": SETTINGS, "reading": CPU}
    assert len(trace(tmp_path / "old", **arguments).measured) == 2
    (tmp_path / "old").rename(tmp_path / "new")
    assert trace(tmp_path / "new", **arguments).before == 2
    assert trace(tmp_path / "new" / "checkpoints", **arguments).before == 2


# Several processes, and fetching.


def test_two_processes_share_the_checkpoints_and_write_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, folder = tmp_path / "probe.safetensors", tmp_path / "run"
    tiny.probe().save(probe)
    for seed in range(5):
        save(folder / f"checkpoint-{seed * 10}", seed)
    (folder / "checkpoint-10" / "config.json").write_text("{}")  # broken: the second process's first
    arguments = [folder, "--probe", f"held={probe}", "--alpha-window", 2, 8, "--device", "cpu"]
    two = [*arguments, "--out", tmp_path / "two.jsonl"]
    other = command(*two, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    with pytest.MonkeyPatch.context() as patched:  # the first is this one
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
            patched.setenv(name, value)
        assert main(["trace", *map(str, two)]) == 0
    out, error = other.communicate(timeout=240)
    assert other.returncode == 1, error[-3000:]
    assert "1 measured, 0 before, 1 failed" in out
    assert "3 measured, 0 before, 0 failed" in capsys.readouterr().out
    assert main(["trace", *map(str, arguments), "--out", str(tmp_path / "one.jsonl")]) == 1
    found, one = read_records(tmp_path / "two.jsonl"), read_records(tmp_path / "one.jsonl")
    assert [record["step"] for record in found] == [0, 20, 30, 40]
    assert [values(record) for record in found] == [values(record) for record in one]
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


# Tokenizers, and behaviour beside geometry.


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
    for step in (1, 2):
        tiny.tokenizer().save_pretrained(save(tmp_path / "two" / "checkpoints" / f"step-{step}", step))
    file = tmp_path / "two" / "checkpoints" / "step-2" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"seven"'))
    summary = trace(tmp_path / "two", probes=source, settings=SETTINGS, reading=CPU)
    assert list(summary.failed) == ["two@step-2"]
    assert "another vocabulary than the probe: token 11 is 'seven' there, and 'w7'" in summary.failed["two@step-2"]


class Norm:
    """The size of the embedding."""

    fingerprint = "n0rm"

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        assert not model.training
        return {"embedding": float(model.get_input_embeddings().weight.detach().double().norm())}  # type: ignore[operator]


def test_behaviour_is_measured_beside_geometry_and_goes_on_by_itself(read: Reading, tmp_path: Path) -> None:
    out = tmp_path / "x-geometry.jsonl"
    first = {"revisions": "all", "probes": tiny.probe(), "settings": SETTINGS, "out": out, "reading": read}
    trace("org/neox", **(first | {"revisions": "step0"}))
    made: list[Any] = []

    def measures(tokenizer: Any, probes: Mapping[str, ProbeSet], settings: Any) -> dict[str, Norm]:
        assert (probes.keys(), settings.alpha_window) == ({"probe"}, tiny.WINDOW)
        made.append(tokenizer)
        return {"norm": Norm()}

    summary = trace("org/neox", measures=measures, **first)
    assert summary.behaviour == tmp_path / "x-behaviour.jsonl"
    assert summary.before == 0  # step0 lacked its behaviour
    assert made[0].convert_ids_to_tokens(4) == "w0"
    found = read_records(tmp_path / "x-behaviour.jsonl")
    expected = [float(tiny.model(seed=seed).get_input_embeddings().weight.double().norm()) for seed in range(3)]
    assert [record["norm/embedding"] for record in found] == pytest.approx(expected, rel=1e-12)
    assert [(r["step"], r["revision"]) for r in found] == [(n, f"step{n}") for n in (0, 8, 1000)]
    assert len(read_records(out)) == 3
    assert trace("org/neox", measures=measures, **first).before == 3
