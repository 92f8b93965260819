"""The recipes in two processes of `accelerate launch` measure what one process measures, and take the same updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpo
import launcher
import micro
import pytest
import torch

from geomcallbacks import read_records

METRICS = ["rankme", "alpha_req", "participation_ratio", "stable_rank", "top1_share", "trace", "mean_norm"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    found = launcher.launch("recipe_worker.py", folder, base)
    assert [process["world size"] for process in found] == [2, 2]
    return folder


@pytest.fixture(scope="module")
def one(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grpo.VERIFIERS, "integer", lambda: micro.EVEN_LENGTH)
        for recipe in micro.MODULES:
            micro.run(recipe, folder / recipe, base=base)
    return folder


@pytest.fixture(params=list(micro.MODULES))
def pair(request: pytest.FixtureRequest, two: Path, one: Path) -> tuple[Path, Path]:
    return two / request.param, one / request.param


def geometry(folder: Path, step: int, file: str = "geometry.jsonl") -> dict[tuple[str, str], Any]:
    records = [record for record in read_records(folder / file) if record["step"] == step]
    return {(record["probe"], metric): record[metric] for record in records for metric in METRICS}


def behaviour(folder: Path, step: int) -> dict[str, Any]:
    (record,) = [record for record in read_records(folder / "behaviour.jsonl") if record["step"] == step]
    return {key: value for key, value in record.items() if "/" in key}


def test_the_start_is_measured_as_one_process_does(pair: tuple[Path, Path]) -> None:
    two, one = pair
    assert [json.loads((folder / "finished.json").read_text())["processes"] for folder in pair] == [2, 1]
    assert geometry(two, 0) == pytest.approx(geometry(one, 0), rel=1e-6)
    assert behaviour(two, 0) == pytest.approx(behaviour(one, 0), rel=1e-6)


def test_each_measurement_is_written_once(pair: tuple[Path, Path]) -> None:
    def lines(file: str, *keys: str) -> list[list[tuple[Any, ...]]]:
        return [[tuple(map(record.get, keys)) for record in read_records(folder / file)] for folder in pair]

    two, one = lines("geometry.jsonl", "step", "probe", "fingerprint", "n")
    assert two == one
    assert lines("behaviour.jsonl", "step") == [[(0,), (2,), (4,)]] * 2
    assert not list(pair[0].glob("*-2.jsonl"))


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_the_same_updates_are_taken(two: Path, one: Path, recipe: str) -> None:
    """Half the rows on each of two processes are the rows of one: weights agree but for the order of sums."""
    two, one = two / recipe, one / recipe
    assert geometry(two, 4) == pytest.approx(geometry(one, 4), rel=1e-3)
    assert geometry(two, 4) != pytest.approx(geometry(one, 0), rel=1e-2)
    assert behaviour(two, 4) == pytest.approx(behaviour(one, 4), rel=1e-3)
    whole = micro.weights(one / "model")
    for name, weight in micro.weights(two / "model").items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-2, atol=1e-4)


def test_both_processes_of_dpo_learn_from_the_same_pairs(two: Path, one: Path) -> None:
    for file in ("dpo/pairs_train.jsonl", "dpo/pairs_test.jsonl"):
        assert (two / file).read_text() == (one / file).read_text()


def test_grpo_starts_from_the_same_rollouts_and_crosses_its_own(two: Path, one: Path) -> None:
    """The rollouts that it learns from differ with the number of processes, so its end is its own."""
    two, one = two / "grpo", one / "grpo"
    judged, whole = (json.loads((folder / "rollouts.json").read_text()) for folder in (two, one))
    assert judged["start"] == pytest.approx(whole["start"], rel=1e-6)
    assert judged["end"] != judged["start"]
    assert [(r["step"], r["probe"]) for r in read_records(two / "crossed.jsonl")] == [
        (step, probe) for step in (0, 4) for probe in ("start_rollouts", "end_rollouts")
    ]
    crossed, alone = (geometry(folder, 0, "crossed.jsonl") for folder in (two, one))
    for metric in METRICS:
        assert crossed["start_rollouts", metric] == pytest.approx(alone["start_rollouts", metric], rel=1e-6)
    assert geometry(two, 4) != pytest.approx(geometry(two, 0), rel=1e-3)
    assert all(bool(torch.isfinite(value).all()) for value in micro.weights(two / "model").values())
