"""What test_sharded runs in each of four processes: models whose parameters are parts of what one would hold."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import launcher
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from geomcallbacks import GeometryMonitor, ProbeSet

#: Ways to spread a model.
KINDS = ("fsdp", "fsdp of a policy", "hsdp", "tensor", "fsdp and tensor")
PLAN = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"} | {
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(),
    "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}
#: Probes and how they are read: what `Moments` and what `Rows` keep, and fewer rows than processes.
PROBES: dict[str, tuple[ProbeSet, dict[str, Any]]] = {
    "odd": (tiny.probe(65), {"layers": [0, 2, -1]}),
    "few rows": (tiny.probe(15), {}),
    "all positions": (tiny.probe(7), {"positions": "all"}),
    "one row": (tiny.probe(1), {"positions": "all", "alpha_window": (1, 4)}),
}
WATCHING = {"alpha_window": tiny.WINDOW, "batch_size": 4, "on_error": "raise"}
BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


class Policy(nn.Module):
    """What holds a language model and is itself the root that is sharded."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **given: Any) -> Any:
        return self.model(**given)


def whole(name: str = "") -> nn.Module:
    """The model that one process holds: float64, so that only what is wrong differs."""
    return (Policy(tiny.model("gpt_neox")) if name == "fsdp of a policy" else tiny.model("llama")).double()


def blocks(model: nn.Module) -> nn.ModuleList:
    return getattr(model, "model", model).base_model.layers


def shard(model: nn.Module, mesh: DeviceMesh, **policy: Any) -> nn.Module:
    """FSDP2 as trainers apply it: each block, then the whole."""
    for block in blocks(model):
        fully_shard(block, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def spread(name: str, line: DeviceMesh, square: DeviceMesh) -> nn.Module:
    """A model in parts, as one of `KINDS` says."""
    model = whole(name)
    if "tensor" in name:
        for block in blocks(model):
            parallelize_module(block, square["tensor"], PLAN)
    if name == "tensor":
        return model
    return shard(model, {"hsdp": square, "fsdp and tensor": square["data"]}.get(name, line))


def measured(model: nn.Module, step: int, which: str) -> list[dict[str, Any]]:
    """What a monitor says of the model on one of `PROBES`."""
    probe, settings = PROBES[which]
    records = GeometryMonitor(probe, **WATCHING | settings).measure(model, step)
    return [
        {"layer": r.layer, "n": r.n, "precision": r.precision, "metrics": r.metrics, "spectrum": r.eigenvalues.tolist()}
        for r in records
    ]


def train(model: nn.Module, updates: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(updates):
        ids_bt = torch.randint(3, tiny.VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))
        model(input_ids=ids_bt, labels=ids_bt).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def state_of(model: nn.Module) -> dict[str, Any]:
    """What a measurement must leave as it is: which parameters are parts, modes, and hooks."""
    return {
        "parts": [isinstance(p, DTensor) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "forward": sum("forward" in vars(m) for m in model.modules()),
    }


def follow(model: nn.Module, file: Path) -> dict[str, Any]:
    """Measurements before the model's first pass and after an update; the weights measured go into `file`."""
    before, weights, found = state_of(model), [], []
    for updates in (0, 1):
        train(model, updates)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        weights.append({name: value.clone() for name, value in state.items()})
        found.append({which: measured(model, updates, which) for which in PROBES})
    if dist.get_rank() == 0:
        torch.save(weights, file)
    return {"parts": before["parts"], "measured": found, "left": state_of(model) == before}


def refused(line: DeviceMesh, **setting: Any) -> str:
    """The message by which a monitor refuses a model sharded with bf16's policy, before training."""
    model = tiny.model("llama")
    model.unused = nn.Identity()
    try:
        GeometryMonitor(tiny.probe(9), **WATCHING | setting).start(shard(model, line, mp_policy=BF16))
    except ValueError as error:
        return str(error)
    return "not refused"


def fails_inside(folder: Path, line: DeviceMesh) -> str:
    """The second process dies inside the forward pass, and the others wait for it until the group's time-out."""
    model = shard(whole(), line)
    watch = GeometryMonitor(tiny.probe(9), **WATCHING | {"on_error": "warn"})
    watch.start(model)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=5), dist.group.WORLD)

    def die(*args: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    if dist.get_rank() == 1:
        blocks(model)[1].mlp.register_forward_hook(die)
    begin = time.monotonic()
    try:
        watch.measure(model, 1)
        message = "nothing was raised"
    except RuntimeError as error:
        message = f"{type(error).__name__}: {error}"
    (folder / f"ended-{dist.get_rank()}").touch()
    while len(list(folder.glob("ended-*"))) < dist.get_world_size() and time.monotonic() < begin + 60:
        time.sleep(0.1)  # alive, so that it is the time-out that ends the others' wait
    return message


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    line = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found: dict[str, Any] = {"world size": dist.get_world_size()}
    found |= {name: follow(spread(name, line, square), folder / f"{name}.pt") for name in KINDS}
    found["bf16"] = measured(shard(tiny.model("llama"), line, mp_policy=BF16), 0, "odd")
    found["fp32 of bf16"] = refused(line, precision="fp32")
    found["not reached"] = refused(line, layers="unused")
    found["fails inside"] = fails_inside(folder, line)
    launcher.report(folder, found)
    os._exit(0)  # a group that has timed out is not taken down


if __name__ == "__main__":
    main(Path(sys.argv[1]))
