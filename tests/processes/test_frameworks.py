"""Trainer, TRL and Lightning on two processes, replicated and sharded: what is measured is what the weights give when
they are gathered, and training goes on as if nothing had been measured.

One launch for each file of recipes/accelerate runs all of `framework_worker`, as most of its time goes into imports.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import launcher
import micro
import pytest
import reference
import tiny
import torch
from processes import framework_worker as worker
from transformers import AutoModelForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet, read_records

Two = tuple[Path, list[dict[str, Any]]]  # what two processes have left behind, and what each of them found
METRICS = ["rankme", "participation_ratio", "stable_rank", "top1_share", "trace", "mean_norm", "alpha_req"]
NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: make test-sharded")


def of_each(names: dict[str, list[str]]) -> Any:
    """A test for each name, on the launch under its file of recipes/accelerate."""
    marks = {"fsdp2": [], "zero3": [pytest.mark.sharded, NO_DEEPSPEED]}
    cases = [pytest.param(config, name, marks=marks[config]) for config in names for name in names[config]]
    return pytest.mark.parametrize(("two", "name"), cases, indirect=["two"])


def launched(config: str, temporary: pytest.TempPathFactory) -> Two:
    folder = temporary.mktemp(config)
    base = micro.make_base(temporary.mktemp("base"))
    found = launcher.launch("framework_worker.py", folder, base, config=config, timeout=400.0)
    assert [process["world size"] for process in found] == [2, 2]
    return folder, found


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Two:
    return launched("fsdp2", tmp_path_factory)


@pytest.fixture(scope="module")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> Two:
    return launched("zero3", tmp_path_factory)


@pytest.fixture
def two(request: pytest.FixtureRequest) -> Two:
    return request.getfixturevalue(request.param)


def gathered(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, float]:
    """The metrics of weights, from a whole model's own hidden states."""
    model = tiny.model("olmo2").eval()
    model.load_state_dict(weights)
    ids_nt, mask_nt = tiny.rows()
    with torch.no_grad():
        states = model.to(dtype)(ids_nt, attention_mask=mask_nt, output_hidden_states=True).hidden_states[-1]
    features_nd = states[torch.arange(len(ids_nt)), mask_nt.sum(1) - 1]
    metrics = reference.describe(features_nd.double().numpy(), tiny.WINDOW)
    return {name: metrics[name] for name in METRICS}


@of_each(worker.RUNS)
def test_weights_are_spread_as_asked(two: Two, name: str) -> None:
    """Sharded: every parameter is a part whenever it is looked at. Replicated: replicas have taken the same updates."""
    _, found = two
    assert [process[name]["sharded"] for process in found] == [["ddp" not in name] * 2] * 2
    assert found[0][name]["sum of weights"] == found[1][name]["sum of weights"]


@of_each(worker.RUNS)
def test_what_is_measured_is_what_the_gathered_weights_give(two: Two, name: str) -> None:
    """In bfloat16 (but not under autocast, which rounds elsewhere) other batches round otherwise."""
    folder, found = two
    records, half = found[0][name]["records"], "bf16" in name
    assert [record["step"] for record in records] == [0, 1, 2, 3]  # gradient accumulation does not measure twice
    assert {(record["n"], record["precision"]) for record in records} == {(64, "bf16" if half else "fp32")}
    assert records[0]["rankme"] != pytest.approx(records[-1]["rankme"], rel=1e-2)
    if name not in ("Trainer ddp bf16", "Lightning fsdp2 bf16-mixed"):
        for record, weights in zip(records, torch.load(folder / name / "weights.pt").values(), strict=True):
            wanted = gathered(weights, torch.bfloat16 if half else torch.float32)
            if half:
                assert record["rankme"] == pytest.approx(wanted["rankme"], rel=5e-3)
            else:
                assert {key: record[key] for key in METRICS} == pytest.approx(wanted, rel=2e-6)


@of_each(worker.RUNS)
def test_training_is_bit_identical_with_and_without(two: Two, name: str) -> None:
    """With checkpointed blocks too (SFTTrainer): under ZeRO-3 a pass before the first update broke their recomputation.
    Neither modes nor hooks nor attributes are left on the model.
    """
    for process in two[1]:
        with_us, without = process[name]["losses"]
        assert len(without) >= 3
        assert with_us == without
        assert process[name]["weights are the same"] == [True] * 4
        assert process[name]["left"][0] == process[name]["left"][1]


@of_each(worker.RUNS)
def test_the_probe_is_read_under_the_autocast_of_training(two: Two, name: str) -> None:
    """Accelerate puts one around DDP's forward and none around FSDP2's, which has a policy of its own."""
    with_us, without = (dict(passes) for passes in two[1][0][name]["passes"])
    assert with_us[False] == with_us[True] == without[True]
    assert without[True] == (name in ("Trainer ddp bf16", "Lightning fsdp2 bf16-mixed"))


@of_each({"fsdp2": ["Trainer behaviour", "Lightning behaviour"], "zero3": ["Trainer behaviour"]})
def test_behaviour_of_sharded_weights_is_refused_before_the_first_update(two: Two, name: str) -> None:
    wanted = "ValueError: the model's parameters are sharded over processes: trace its checkpoints instead"
    assert [process[name] for process in two[1]] == [wanted] * 2


@of_each({"fsdp2": ["behaviour"]})
def test_replicas_end_with_the_behaviour_that_the_first_measures(two: Two, name: str) -> None:
    """A failure is warned of once, or raised by both."""
    folder, (first, second) = two[0], (process[name] for process in two[1])
    assert first["rows"] == second["rows"]
    assert [row["step"] for row in first["rows"]] == [0, 1, 2, 3]
    assert [row["behaviour/who/rank"] for row in first["rows"]] == [0.1] * 4
    records = read_records(folder / name / "behaviour.jsonl")
    assert [record["loss/loss"] for record in records] == [row["behaviour/loss/loss"] for row in first["rows"]]
    assert len({record["loss/loss"] for record in records}) == 4
    assert [record["who/missing"] for record in records] == [None] * 4
    assert not (folder / name / "behaviour-2.jsonl").exists()
    assert (len(first["warnings"]), len(second["warnings"])) == (1, 0)
    assert "KeyError" in first["warnings"][0]
    assert first["raised"] == "KeyError: 'injected'"
    assert "another process failed to measure 'broken' (KeyError: 'injected')" in second["raised"]


@of_each({config: list(micro.MODULES) for config in worker.RUNS})
def test_recipes_measure_sharded_weights_and_leave_behaviour_out(two: Two, name: str) -> None:
    """What they have measured at last is what their saved weights give."""
    folder = two[0] / name
    assert json.loads((folder / "finished.json").read_text())["processes"] == 2
    assert not (folder / "behaviour.jsonl").exists()
    assert (two[0] / "output.txt").read_text().count("behaviour is not (no behaviour.jsonl)") == len(micro.MODULES)
    records = read_records(folder / "geometry.jsonl")
    assert sorted({record["step"] for record in records}) == [0, 2, 4]
    probes = {file.stem: ProbeSet.load(file) for file in folder.glob("_geometry-probes/*")}
    trained = AutoModelForCausalLM.from_pretrained(folder / "model")
    for record in records[-len(probes) :]:
        monitor = GeometryMonitor(probes[record["fingerprint"]], positions=4, alpha_window=(2, 12))
        (whole,) = monitor.measure(trained, 4)
        assert record["rankme"] == pytest.approx(whole.metrics["rankme"], rel=1e-6)
