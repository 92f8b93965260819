"""Models in parts (FSDP2, hybrid sharding, tensor parallelism, both together) give what the whole model gives.

All scenarios of `sharded_worker` run in one group of two processes and one of four. The weights that were measured are
gathered there, and measured again here, where no process group is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import sharded_worker
import tiny
import torch

TIMEOUT = 300.0  # seconds for a group of processes; it takes some twenty

KINDS = {"fsdp": "llama", "fsdp of another shape": "gpt_neox", "tensor": "llama", "hsdp": "llama"}
KINDS |= {"fsdp and tensor": "llama"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


def together(folder: Path, world_size: int) -> list[dict[str, Any]]:
    part = folder / str(world_size)
    part.mkdir()
    return processes.run_together("sharded_worker.py", world_size, part, TIMEOUT)


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return together(folder, 2)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return together(folder, 4)


def test_there_are_two_processes(two: list[dict[str, Any]]) -> None:
    assert [found["world size"] for found in two] == [2, 2]


def test_there_are_four_processes(four: list[dict[str, Any]]) -> None:
    assert [found["world size"] for found in four] == [4, 4, 4, 4]


@pytest.mark.parametrize("step", [0, 1], ids=["update 0", "after an update"])
@pytest.mark.parametrize("name", list(KINDS))
def test_parts_give_what_the_whole_gives(request: pytest.FixtureRequest, folder: Path, name: str, step: int) -> None:
    """Float64 through and through; tensor parallelism adds products in another order."""
    world = 4 if name in ("hsdp", "fsdp and tensor") else 2
    found = request.getfixturevalue("four" if world == 4 else "two")
    assert [process["world size"] for process in found] == [world] * world
    for process in found:
        parts = process[name]["parts"]
        assert all(parts) if "fsdp" in name or name == "hsdp" else any(parts) and not all(parts)
    model = sharded_worker.whole(KINDS[name])
    model.load_state_dict(torch.load(folder / str(world) / f"{name}-{step}.pt", weights_only=True))
    for which in sharded_worker.probes():
        wanted = sharded_worker.measured(model, step, which)
        for process in found:
            got = process[name]["measured"][str(step)][which]
            assert [(r["layer"], r["n"], r["precision"]) for r in got] == [
                (r["layer"], r["n"], r["precision"]) for r in wanted
            ]
            for mine, whole in zip(got, wanted, strict=True):
                assert mine["metrics"] == pytest.approx(whole["metrics"], rel=1e-9)
                assert mine["spectrum"] == pytest.approx(whole["spectrum"], rel=1e-9, abs=1e-15)
            assert got == found[0][name]["measured"][str(step)][which]  # every process ends with the same numbers


@pytest.mark.parametrize("name", list(KINDS))
def test_the_update_changed_what_is_measured(request: pytest.FixtureRequest, name: str) -> None:
    """Else weights of update 0 could be taken for those of update 1."""
    found = request.getfixturevalue("four" if name in ("hsdp", "fsdp and tensor") else "two")
    first, second = (found[0][name]["measured"][step]["odd"][-1]["metrics"]["rankme"] for step in ("0", "1"))
    assert abs(second / first - 1) > 1e-3


@pytest.mark.parametrize("name", list(KINDS))
def test_parameters_modes_and_hooks_are_left_as_they_were(request: pytest.FixtureRequest, name: str) -> None:
    found = request.getfixturevalue("four" if name in ("hsdp", "fsdp and tensor") else "two")
    assert all(process[name]["left"] for process in found)


def test_training_is_undisturbed(two: list[dict[str, Any]]) -> None:
    for process in two:
        assert process["undisturbed"] == {"losses": True, "weights": True, "learned": True}


def test_the_policy_of_the_shards_says_the_precision(two: list[dict[str, Any]]) -> None:
    """Against the same weights in bfloat16, but for the rotary table, which FSDP keeps in float32."""
    wanted = sharded_worker.measured(tiny.model("llama").to(torch.bfloat16), 0, "odd")
    for process in two:
        for got, whole in zip(process["bf16"], wanted, strict=True):
            assert got["precision"] == whole["precision"] == "bf16"
            assert got["metrics"]["rankme"] == pytest.approx(whole["metrics"]["rankme"], rel=2e-2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fp32 of bf16", "precision='fp32', and the policy of the sharded model computes in bf16"),
        ("compiled", "compile=True compiles the blocks of a causal language model"),
        ("no such layer", "layers='lm_heat' is no submodule"),
        ("not reached", "layer 'unused' was not reached by the forward pass"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(two: list[dict[str, Any]], name: str, said: str) -> None:
    for process in two:
        assert process[name].startswith(said)


@pytest.mark.fault
def test_a_failure_inside_the_pass_of_parts_ends_in_our_message(
    two: list[dict[str, Any]], tally: Callable[..., None]
) -> None:
    """On the process that failed at once, on the other after the group's time-out, though on_error is "warn"."""
    waited, failed = (process["fails inside"]["said"] for process in two)
    assert "OutOfMemoryError: injected" in failed
    assert "imed out" in waited
    for rank, said in enumerate((waited, failed)):
        assert said.startswith(
            f"LostPassError: the probe failed on process {rank} inside the forward pass of a sharded"
        )
        assert "go on from its last checkpoint with a smaller batch_size (now 4)" in said
    tally("failure on one process among shards", injected=1, survived=0)
