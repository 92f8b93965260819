"""Trainer and TRL on two processes under DeepSpeed ZeRO-3, which is not among our extras: pip install deepspeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import micro
import processes
import pytest
import torch
from test_sharded_frameworks import UPDATES, check_recipe, chosen, gathered, launch

pytest.importorskip("deepspeed")
NAMES = ["Trainer zero3", "SFTTrainer zero3", "Trainer zero3 bf16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left behind."""
    folder = tmp_path_factory.mktemp("zero3")
    launch("zero3", folder, micro.make_base(tmp_path_factory.mktemp("base")))
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return processes.found_by(folder)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_two_processes_and_they_shard(two: list[dict[str, Any]], name: str) -> None:
    assert [(found[name]["processes"], found[name]["sharded"]) for found in two] == [(2, True)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_is_what_the_gathered_weights_give(folder: Path, two: list[dict[str, Any]], name: str) -> None:
    half = name.endswith("bf16")
    records = two[0][name]["records"]
    assert [record["step"] for record in records] == UPDATES
    for record in records:
        wanted = gathered(folder, name, record["step"], torch.bfloat16 if half else torch.float32)
        assert record["precision"] == ("bf16" if half else "fp32")
        if half:  # other batches round otherwise
            assert record["rankme"] == pytest.approx(wanted["rankme"], rel=5e-3)
        else:
            assert chosen(record) == pytest.approx(chosen(wanted), rel=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_bit_identical_with_and_without(two: list[dict[str, Any]], name: str) -> None:
    """With checkpointed blocks too (SFTTrainer): a pass before the first update had broken their recomputation."""
    for found in two:
        with_us, without = found[name]["losses"]
        assert len(without) >= 3
        assert with_us == without
        assert found[name]["weights are the same"]
        assert found[name]["left"][0] == found[name]["left"][1]


def test_behaviour_is_refused_before_the_first_update(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["Trainer behaviour"].startswith("the model's parameters are sharded over processes")


@pytest.mark.parametrize("recipe", list(micro.MODULES))
def test_recipes_measure_geometry_and_leave_behaviour_out(folder: Path, recipe: str) -> None:
    check_recipe(folder, recipe)
