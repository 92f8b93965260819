"""`geomcallbacks trace`: the callbacks' numbers from saved checkpoints, of runs, of revisions, of several models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hub_cache
import micro
import numpy as np
import pytest
import reference
import tiny
import torch
from hub_cache import save_model
from pretrain import main as pretrain
from transformers import AutoConfig, AutoModelForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet, read_records, read_spectra
from geomcallbacks.cli import main
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.record import read_lines
from geomcallbacks.trace import ProbeSource, Reading, trace

SETTINGS = {"alpha_window": tiny.WINDOW, "batch_size": 16}
CPU = Reading(device="cpu")


def values(record: dict[str, Any]) -> list[float]:
    return [record[name] for name in METRIC_NAMES]


@pytest.mark.parametrize(
    "changed",
    [{}, {"architecture": "olmo2", "positions": "all"}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}],
    ids=str,
)
def test_live_equals_traced(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = tmp_path / "run"
    pretrain(micro.pretraining(run, micro.write_texts(tmp_path), probe_length=16, probe_batch=10, **changed))
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


def test_revisions_of_the_cache_are_measured_as_an_independent_reference_does(
    tmp_path: Path, source: ProbeSource
) -> None:
    add = lambda step: hub_cache.add_revision(tmp_path, "org/x", f"step{step}", hub_cache.model_files(step))
    folders = {step: add(step) for step in (0, 8, 1000)}
    out, reading = tmp_path / "x.jsonl", Reading(cache_dir=str(tmp_path), device="cpu")
    summary = trace("org/x", revisions="all", probes=source, settings=SETTINGS, out=out, reading=reading)
    assert summary.measured == ["org/x@step0", "org/x@step8", "org/x@step1000"]
    records = read_records(out)
    probe = source.build(tiny.tokenizer())
    assert {(r["precision"], r["fingerprint"]) for r in records} == {("fp32", probe.fingerprint)}
    for record, (step, folder) in zip(records, folders.items(), strict=True):
        assert (record["model"], record["revision"], record["step"]) == ("org/x", f"step{step}", step)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            rows = [
                model(ids[None, :length], output_hidden_states=True).hidden_states[-1][0, -1]
                for ids, length in zip(probe.input_ids_nt, probe.lengths_n, strict=True)
            ]
        expected = reference.describe(torch.stack(rows).double().numpy(), tiny.WINDOW)
        assert {name: record[name] for name in METRIC_NAMES} == pytest.approx(expected, rel=1e-5)


def test_several_models_are_one_curve_and_one_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    models = [save_model(tmp_path / name / "final", seed) for seed, name in enumerate(("sft", "b", "dpo"))]
    config = AutoConfig.from_pretrained(models[1], hidden_size=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(models[1])
    probes, settings = {"a": tiny.probe(), "b": tiny.probe(70, 16)}, {"alpha_window": (2, 12)}
    for before in (0, 2):  # the second start meets the misfit first
        summary = trace(models, probes=probes, settings=settings, out=tmp_path / "g.jsonl", reading=CPU)
        assert "reaches past the 8 eigenvalues" in summary.failed[f"{models[1]}@final"]
        assert (len(summary.failed), summary.before) == (1, before)
    monitor = GeometryMonitor(probes, **settings)
    expected = [
        (seed, str(models[seed]), record.probe, pytest.approx(record.metrics["rankme"], rel=1e-6))
        for seed in (0, 2)
        for record in monitor.measure(tiny.model(seed=seed), 0)
    ]
    records = read_records(tmp_path / "g.jsonl")
    assert [(r["step"], r["model"], r["probe"], r["rankme"]) for r in records] == expected
    # They are trained from one another: only the first can have been random.
    assert read_lines(tmp_path / "g.jsonl")[0]["settings"]["from_scratch"] is False


def test_what_is_torn_or_not_finite_is_no_measurement(tmp_path: Path) -> None:
    for step, factor in ((0, 1.0), (10, torch.nan), (20, 2.0)):
        model = tiny.model(seed=step)
        model.get_input_embeddings().weight.data *= factor  # type: ignore[operator]
        state = {f"net.{key}": value for key, value in model.state_dict().items()}
        torch.save({"state_dict": state, "global_step": step}, tmp_path / f"best-{step}.ckpt")  # as Lightning does
    model.config.save_pretrained(tmp_path)
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "best-0.ckpt").read_bytes()[:1000])
    summary = trace(tmp_path, probes=tiny.probe(), settings=SETTINGS, reading=CPU)
    name = tmp_path.name
    assert summary.failed.keys() == {f"{name}@torn", f"{name}@best-10"}
    assert "nothing can be measured of it: 64 of 64 rows are not finite" in summary.failed[f"{name}@best-10"]
    records = read_records(tmp_path / "geometry-trace.jsonl")
    assert [record["step"] for record in records] == [0, 20]
    live = GeometryMonitor(tiny.probe(), **SETTINGS).measure(model, 20)
    assert values(records[-1]) == [live[0].metrics[name] for name in METRIC_NAMES]


def test_a_model_without_a_tokenizer_is_told_how_to_get_one(tmp_path: Path, source: ProbeSource) -> None:
    tiny.model().save_pretrained(tmp_path / "mute")
    with pytest.raises(ValueError, match=r"has no tokenizer: give one with --tokenizer FOLDER"):
        trace(tmp_path / "mute", probes=source, settings=SETTINGS, reading=CPU)
    given = Reading(device="cpu", tokenizer=str(save_model(tmp_path / "words")))
    assert trace(tmp_path / "mute", probes=source, settings=SETTINGS, reading=given).measured == ["mute@mute"]


def test_a_probe_in_another_vocabulary_is_refused(tmp_path: Path, source: ProbeSource) -> None:
    # A later checkpoint whose tokens of the same numbers are other words: the same size hides it from a look at ids.
    for step in (1, 2):
        save_model(tmp_path / "two" / "checkpoints" / f"step-{step}", step)
    file = tmp_path / "two" / "checkpoints" / "step-2" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"seven"'))
    summary = trace(tmp_path / "two", probes=source, settings=SETTINGS, reading=CPU)
    assert list(summary.failed) == ["two@step-2"]
    assert "another vocabulary than the probe: token 11 is 'seven' there, and 'w7'" in summary.failed["two@step-2"]


def norm(model: torch.nn.Module) -> dict[str, float]:
    assert not model.training
    return {"embedding": float(model.get_input_embeddings().weight.detach().double().norm())}  # type: ignore[operator]


def test_behaviour_is_measured_beside_geometry_and_goes_on_by_itself(tmp_path: Path) -> None:
    for step in (0, 8, 1000):
        save_model(tmp_path / f"checkpoint-{step}", step)
    arguments = {"probes": tiny.probe(), "settings": SETTINGS, "reading": CPU}
    trace(tmp_path, revisions="checkpoint-0", **arguments)
    made: list[Any] = []

    def measures(tokenizer: Any, probes: Mapping[str, ProbeSet], settings: Any) -> dict[str, Any]:
        assert (probes.keys(), settings.alpha_window) == ({"probe"}, tiny.WINDOW)
        made.append(tokenizer)
        return {"norm": norm}

    summary = trace(tmp_path, measures=measures, **arguments)
    assert summary.before == 0  # checkpoint-0 lacked its behaviour
    assert made[0].convert_ids_to_tokens(4) == "w0"
    found = read_records(tmp_path / "behaviour-trace.jsonl")
    expected = [float(tiny.model(seed=n).get_input_embeddings().weight.double().norm()) for n in (0, 8, 1000)]
    assert [record["norm/embedding"] for record in found] == pytest.approx(expected, rel=1e-12)
    assert [(r["step"], r["revision"]) for r in found] == [(n, f"checkpoint-{n}") for n in (0, 8, 1000)]
    assert len(read_records(tmp_path / "geometry-trace.jsonl")) == 3
    assert trace(tmp_path, measures=measures, **arguments).before == 3
