"""Two processes of `accelerate launch` measure what one measures, and take the same updates.

SFT is launched as a user does; DPO and GRPO share a second launch, since most of its time goes into imports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpo
import micro
import processes
import pytest
import torch

from geomcallbacks import read_records

ROOT = Path(__file__).parents[1]
METRICS = ["rankme", "alpha_req", "participation_ratio", "stable_rank", "top1_share", "trace", "mean_norm"]
TIMEOUT = 400.0  # seconds for a launch; it takes some twenty


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.make_base(tmp_path_factory.mktemp("base"))


def launch(*command: str) -> str:
    """Runs a script in two processes and returns what they said."""
    return processes.launch("--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no", *command, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("two")
    launch("recipes/sft.py", *micro.arguments("sft", folder / "sft", base=base, per_device_train_batch_size=2))
    launch("tests/posttrain_worker.py", str(base), str(folder))
    return {recipe: folder / recipe for recipe in micro.MODULES}


@pytest.fixture(scope="module")
def one(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grpo.VERIFIERS, "integer", lambda: micro.EVEN_LENGTH)
        found = {recipe: micro.run(recipe, folder / recipe, base=base) for recipe in micro.MODULES}
    torch.set_num_threads(threads)
    return found


@pytest.fixture(params=list(micro.MODULES))
def pair(request: pytest.FixtureRequest, two: dict[str, Path], one: dict[str, Path]) -> tuple[Path, Path]:
    return two[request.param], one[request.param]


def geometry(folder: Path, step: int, file: str = "geometry.jsonl") -> dict[tuple[str, str], Any]:
    records = [record for record in read_records(folder / file) if record["step"] == step]
    return {(record["probe"], metric): record[metric] for record in records for metric in METRICS}


def behaviour(folder: Path, step: int) -> dict[str, Any]:
    (record,) = [record for record in read_records(folder / "behaviour.jsonl") if record["step"] == step]
    return {key: value for key, value in record.items() if "/" in key}


def test_there_are_two_processes(pair: tuple[Path, Path]) -> None:
    found = [json.loads((folder / "finished.json").read_text())["processes"] for folder in pair]
    assert found == [2, 1]


def test_the_start_is_measured_as_one_process_does(pair: tuple[Path, Path]) -> None:
    two, one = pair
    assert geometry(two, 0) == pytest.approx(geometry(one, 0), rel=1e-6)
    assert behaviour(two, 0) == pytest.approx(behaviour(one, 0), rel=1e-6)
    prints = [{(r["probe"], r["fingerprint"], r["n"]) for r in read_records(f / "geometry.jsonl")} for f in pair]
    assert prints[0] == prints[1]


def test_each_measurement_is_written_once(pair: tuple[Path, Path]) -> None:
    two, one = pair
    for file in ("geometry.jsonl", "behaviour.jsonl"):
        assert [(r["step"], r.get("probe")) for r in read_records(two / file)] == [
            (r["step"], r.get("probe")) for r in read_records(one / file)
        ]
    assert [r["step"] for r in read_records(two / "behaviour.jsonl")] == [0, 2, 4]
    assert not list(two.glob("*-2.jsonl"))


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_the_same_updates_are_taken(two: dict[str, Path], one: dict[str, Path], recipe: str) -> None:
    """Half the rows on each of two processes are the rows of one: weights agree but for the order of sums."""
    assert geometry(two[recipe], 4) == pytest.approx(geometry(one[recipe], 4), rel=1e-3)
    assert geometry(two[recipe], 4) != pytest.approx(geometry(one[recipe], 0), rel=1e-2)
    assert behaviour(two[recipe], 4) == pytest.approx(behaviour(one[recipe], 4), rel=1e-3)
    weights = [micro.weights(folder[recipe] / "model") for folder in (two, one)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-2, atol=1e-4)


def test_both_processes_of_dpo_learn_from_the_same_pairs(two: dict[str, Path], one: dict[str, Path]) -> None:
    for part in ("train", "test"):
        assert (two["dpo"] / f"pairs_{part}.jsonl").read_text() == (one["dpo"] / f"pairs_{part}.jsonl").read_text()


def test_grpo_starts_from_the_same_rollouts_and_crosses_its_own(two: dict[str, Path], one: dict[str, Path]) -> None:
    """The rollouts that it learns from differ with the number of processes, so its end is its own."""
    judged = [json.loads((folder["grpo"] / "rollouts.json").read_text()) for folder in (two, one)]
    assert judged[0]["start"] == pytest.approx(judged[1]["start"], rel=1e-6)
    assert list(judged[0]) == ["start", "end"]
    assert judged[0]["end"] != judged[0]["start"]
    crossed = read_records(two["grpo"] / "crossed.jsonl")
    assert [(r["step"], r["probe"]) for r in crossed] == [
        (step, probe) for step in (0, 4) for probe in ("start_rollouts", "end_rollouts")
    ]
    start = {("start_rollouts", metric) for metric in METRICS}
    cells = [geometry(folder["grpo"], 0, "crossed.jsonl") for folder in (two, one)]
    assert {key: cells[0][key] for key in start} == pytest.approx({key: cells[1][key] for key in start}, rel=1e-6)
    assert geometry(two["grpo"], 4) != pytest.approx(geometry(two["grpo"], 0), rel=1e-3)
    loaded = micro.weights(two["grpo"] / "model")
    assert all(bool(torch.isfinite(value).all()) for value in loaded.values())
