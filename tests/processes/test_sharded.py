"""Models in parts (FSDP2, hybrid sharding, tensor parallelism, both together) give what the whole model gives.

All scenarios of `sharded_worker` run in one group of four processes. The weights that were measured are gathered there,
and measured again here, where no process group is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launcher
import pytest
import tiny
import torch
from processes import sharded_worker as worker

KINDS = pytest.mark.parametrize("name", worker.KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    """What each of four processes found."""
    found = launcher.launch("sharded_worker.py", folder, processes=4)
    assert [process["world size"] for process in found] == [4, 4, 4, 4]
    return found


@KINDS
def test_parts_give_what_the_whole_gives(folder: Path, four: list[dict[str, Any]], name: str) -> None:
    """Float64 through and through; tensor parallelism adds products in another order."""
    for process in four:
        parts = process[name]["parts"]
        assert all(parts) if name != "tensor" else any(parts) and not all(parts)
        assert process[name]["measured"] == four[0][name]["measured"]
    model = worker.whole(name)
    for step, weights in enumerate(torch.load(folder / f"{name}.pt", weights_only=True)):
        model.load_state_dict(weights)
        for which, records in four[0][name]["measured"][step].items():
            for got, wanted in zip(records, worker.measured(model, step, which), strict=True):
                numbers = {key: pytest.approx(wanted[key], rel=1e-9, abs=1e-15) for key in ("metrics", "spectrum")}
                assert got == wanted | numbers


@KINDS
def test_the_update_changed_what_is_measured_and_nothing_else_did(four: list[dict[str, Any]], name: str) -> None:
    """Parameters, modes and hooks are left as they were."""
    first, second = (found["odd"][-1]["metrics"]["rankme"] for found in four[0][name]["measured"])
    assert abs(second / first - 1) > 1e-3
    assert all(process[name]["left"] for process in four)


def test_the_policy_of_the_shards_says_the_precision(four: list[dict[str, Any]]) -> None:
    """Against the same weights in bfloat16, but for the rotary table, which FSDP keeps in float32."""
    wanted = worker.measured(tiny.model("llama").to(torch.bfloat16), 0, "odd")
    for got, whole in zip(four[0]["bf16"], wanted, strict=True):
        assert got["precision"] == whole["precision"] == "bf16"
        assert got["metrics"]["rankme"] == pytest.approx(whole["metrics"]["rankme"], rel=2e-2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp32 of bf16", "precision='fp32', and the policy of the sharded model computes in bf16"),
        ("not reached", "layer 'unused' was not reached by the forward pass"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(four: list[dict[str, Any]], name: str, message: str) -> None:
    assert all(process[name].startswith(message) for process in four)


@pytest.mark.fault
def test_a_failure_inside_the_pass_of_parts_ends_in_our_message(four: list[dict[str, Any]]) -> None:
    """On the process that failed at once, on the others after the group's time-out, though on_error is "warn"."""
    for rank, message in enumerate(process["fails inside"] for process in four):
        assert message.startswith(
            f"LostPassError: the probe failed on process {rank} inside the forward pass of a sharded"
        )
        assert ("OutOfMemoryError: injected" if rank == 1 else "imed out") in message
        assert "go on from its last checkpoint with a smaller batch_size (now 4)" in message
