"""Trainer, TRL and Lightning on two processes, replicated and sharded: what is measured is what the weights give when
they are gathered, and training goes on as if nothing had been measured.

One launch runs all of `framework_worker`, as most of its time goes into imports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import micro
import processes
import pytest
import reference
import tiny
import torch
from transformers import AutoModelForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet, read_records

ROOT = Path(__file__).parents[1]
TIMEOUT = 400.0  # seconds for the launch; it takes some fifty
DDP = ["Trainer ddp", "Lightning ddp"]
FSDP2 = ["Trainer fsdp2", "SFTTrainer fsdp2", "DPOTrainer fsdp2", "GRPOTrainer fsdp2", "Lightning fsdp2"]
BF16 = ["Trainer ddp bf16", "Trainer fsdp2 bf16", "Lightning fsdp2 bf16-true", "Lightning fsdp2 bf16-mixed"]
UPDATES = [0, 1, 2, 3]
METRICS = ["rankme", "participation_ratio", "stable_rank", "top1_share", "trace", "mean_norm", "alpha_req"]


def launch(config: str, folder: Path, base: Path) -> None:
    """Run the worker in two processes under a file of recipes/accelerate; what they said goes into said.txt."""
    config = f"recipes/accelerate/{config}.yaml"
    said = processes.launch(
        "--config_file", config, "tests/framework_worker.py", str(folder), str(base), timeout=TIMEOUT
    )
    (folder / "said.txt").write_text(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left behind."""
    folder = tmp_path_factory.mktemp("frameworks")
    launch("fsdp2", folder, micro.make_base(tmp_path_factory.mktemp("base")))
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return processes.found_by(folder)


def gathered(folder: Path, name: str, step: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The metrics of the weights after `step` updates of a run without us, from a whole model's own hidden states."""
    model = tiny.model("olmo2").eval()
    model.load_state_dict(torch.load(folder / name / "weights.pt")[step])
    ids_nt, mask_nt = tiny.rows()
    with torch.no_grad():
        states = model.to(dtype)(ids_nt, attention_mask=mask_nt, output_hidden_states=True).hidden_states[-1]
    features_nd = states[torch.arange(len(ids_nt)), mask_nt.sum(1) - 1]
    return reference.describe(features_nd.double().numpy(), tiny.WINDOW)


def chosen(numbers: dict[str, Any]) -> dict[str, float]:
    return {name: numbers[name] for name in METRICS}


@pytest.mark.parametrize("name", [*DDP, *FSDP2, *BF16])
def test_there_are_two_processes_and_they_shard_where_asked(two: list[dict[str, Any]], name: str) -> None:
    """Sharded: every parameter is a DTensor, with and without our callback."""
    assert [found[name]["processes"] for found in two] == [2, 2]
    assert [found[name]["sharded"] for found in two] == ["fsdp2" in name] * 2


@pytest.mark.parametrize("name", [*DDP, *FSDP2])
def test_what_is_measured_is_what_the_gathered_weights_give(folder: Path, two: list[dict[str, Any]], name: str) -> None:
    records = two[0][name]["records"]
    assert [record["step"] for record in records] == UPDATES  # gradient accumulation does not measure twice
    assert {(record["n"], record["precision"]) for record in records} == {(64, "fp32")}
    for record in records:
        assert chosen(record) == pytest.approx(chosen(gathered(folder, name, record["step"])), rel=2e-6)
    assert records[0]["rankme"] != pytest.approx(records[-1]["rankme"], rel=1e-2)


@pytest.mark.parametrize("name", ["Trainer fsdp2 bf16", "Lightning fsdp2 bf16-true"])
def test_a_sharded_models_own_policy_says_the_precision(folder: Path, two: list[dict[str, Any]], name: str) -> None:
    for record in two[0][name]["records"]:
        assert record["precision"] == "bf16"
        wanted = gathered(folder, name, record["step"], torch.bfloat16)
        assert record["rankme"] == pytest.approx(wanted["rankme"], rel=2e-3)  # other batches round otherwise


@pytest.mark.parametrize("name", [*DDP, *FSDP2, *BF16])
def test_training_is_bit_identical_with_and_without(two: list[dict[str, Any]], name: str) -> None:
    for found in two:
        with_us, without = found[name]["losses"]
        assert len(without) >= 3
        assert with_us == without
        assert found[name]["weights are the same"]


@pytest.mark.parametrize("name", [*DDP, *FSDP2, *BF16])
def test_nothing_is_left_on_the_model(two: list[dict[str, Any]], name: str) -> None:
    """Neither hooks nor attributes nor gathered parameters, and FSDP has found the same root."""
    for found in two:
        with_us, without = found[name]["left"]
        assert with_us == without
    roots = [state[0] for *_, state in two[0][name]["left"][0] if state is not None]
    assert sum(roots) == ("fsdp2" in name)


@pytest.mark.parametrize("name", [*DDP, *FSDP2, *BF16])
def test_the_probe_is_read_under_the_autocast_of_training(two: list[dict[str, Any]], name: str) -> None:
    """Accelerate puts one around DDP's forward and none around FSDP2's, which has a policy of its own."""
    with_us, without = (dict(found) for found in two[0][name]["passes"])
    assert with_us[False] == with_us[True] == without[True]
    assert without[True] == (name in ("Trainer ddp bf16", "Lightning fsdp2 bf16-mixed"))


@pytest.mark.parametrize("name", ["Trainer behaviour", "Lightning behaviour"])
def test_behaviour_of_sharded_weights_is_refused_before_the_first_update(two: list[dict[str, Any]], name: str) -> None:
    for found in two:
        assert found[name].startswith("the model's parameters are sharded over processes")
        assert found[name].endswith("measure it on saved checkpoints (geomcallbacks trace)")


def check_recipe(folder: Path, recipe: str) -> None:
    """A recipe on sharded weights has measured what its saved weights give, and no behaviour."""
    stage = folder / recipe
    assert json.loads((stage / "finished.json").read_text())["processes"] == 2
    assert not (stage / "behaviour.jsonl").exists()
    assert (folder / "said.txt").read_text().count("behaviour is not (no behaviour.jsonl)") == len(micro.MODULES)
    records = read_records(stage / "geometry.jsonl")
    assert sorted({record["step"] for record in records}) == [0, 2, 4]
    probes = {file.stem: ProbeSet.load(file) for file in stage.glob("geometry-probes/*")}
    trained = AutoModelForCausalLM.from_pretrained(stage / "model")
    for record in records[-len(probes) :]:
        monitor = GeometryMonitor(probes[record["fingerprint"]], positions=4, alpha_window=(2, 12))
        (whole,) = monitor.measure(trained, 4)
        assert record["rankme"] == pytest.approx(whole.metrics["rankme"], rel=1e-6)


@pytest.mark.parametrize("recipe", list(micro.MODULES))
def test_recipes_measure_geometry_and_leave_behaviour_out(folder: Path, recipe: str) -> None:
    check_recipe(folder, recipe)
