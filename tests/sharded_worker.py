"""What test_sharded runs in each of two or four processes: models whose parameters are parts of what one would hold."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from distributed_worker import join
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.reading.sharding import spread_of

PLAN = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"} | {
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(),
    "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}


def whole(kind: str = "llama") -> PreTrainedModel:
    """The model that one process holds: float64, so that only what is wrong differs."""
    return tiny.model(kind).double()


def shard(model: PreTrainedModel, mesh: DeviceMesh, **policy: Any) -> PreTrainedModel:
    """FSDP2 as trainers apply it: each block, then the whole."""
    for block in model.get_decoder().layers:
        fully_shard(block, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def split_blocks(model: PreTrainedModel, mesh: DeviceMesh) -> PreTrainedModel:
    """Tensor parallelism within each block."""
    for block in model.get_decoder().layers:
        parallelize_module(block, mesh, PLAN)
    return model


def probes() -> dict[str, tuple[ProbeSet, dict[str, Any]]]:
    """Probes and how they are read, by name: what `Moments` and what `Rows` keep, and fewer rows than processes."""
    return {
        "odd": (tiny.probe(65), {"layers": [0, 2, -1]}),
        "few rows": (tiny.probe(15), {}),
        "all positions": (tiny.probe(7), {"positions": "all"}),
        "one row": (tiny.probe(1), {"positions": "all", "alpha_window": (1, 4)}),
    }


def measured(model: nn.Module, step: int, which: str, **changes: Any) -> list[dict[str, Any]]:
    """What a monitor says of the model on a probe of `probes`."""
    probe, settings = probes()[which]
    given = {"alpha_window": tiny.WINDOW, "batch_size": 4, "on_error": "raise"} | settings | changes
    records = GeometryMonitor(probe, **given).measure(model, step)
    return [
        {"layer": r.layer, "n": r.n, "metrics": r.metrics, "precision": r.precision, "spectrum": r.eigenvalues.tolist()}
        for r in records
    ]


def train(model: nn.Module, updates: int, watch: Callable[[int], None] = lambda step: None) -> list[float]:
    """Losses of so many updates; processes that hold parts of the same replica have the same rows."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(spread_of(model).index)
    losses = []
    for step in range(1, updates + 1):
        ids_bt = torch.randint(3, tiny.VOCABULARY, (4, 12), generator=generator)
        loss = model(input_ids=ids_bt, labels=ids_bt).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
        watch(step)
    return losses


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights, whole, on the first process."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def state_of(model: nn.Module) -> dict[str, Any]:
    """What a measurement must leave as it is: which parameters are parts, modes, and hooks."""
    return {
        "parts": [isinstance(p, DTensor) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "forward": sum("forward" in vars(m) for m in model.modules()),
    }


def follow(model: nn.Module, folder: Path, name: str) -> dict[str, Any]:
    """Measured before the first pass of the model and after an update, with the weights that were measured."""
    before = state_of(model)
    found: dict[str, Any] = {"parts": before["parts"], "measured": {}}
    for step in (0, 1):
        if step == 1:
            train(model, 1)
        weights = gathered(model)
        if dist.get_rank() == 0:
            torch.save(weights, folder / f"{name}-{step}.pt")
        found["measured"][step] = {which: measured(model, step, which) for which in probes()}
    found["left"] = state_of(model) == before
    return found


def undisturbed() -> dict[str, Any]:
    """Losses and weights of a training run, watched and not."""
    runs = []
    for watched in (True, False):
        model = shard(whole(), init_device_mesh("cpu", (dist.get_world_size(),)))
        watch = GeometryMonitor(tiny.probe(9), alpha_window=tiny.WINDOW, batch_size=4, on_error="raise")
        if watched:
            watch.start(model)
        losses = train(model, 4, (lambda step, m=model, w=watch: w.measure(m, step)) if watched else lambda step: None)
        runs.append((losses, [p.to_local() for p in model.parameters()]))
    (losses, weights), (plain_losses, plain_weights) = runs
    same = [torch.equal(a, b) for a, b in zip(weights, plain_weights, strict=True)]
    return {"losses": losses == plain_losses, "weights": all(same), "learned": losses[0] != losses[-1]}


def low_precision() -> list[dict[str, Any]]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = shard(tiny.model("llama"), init_device_mesh("cpu", (dist.get_world_size(),)), mp_policy=policy)
    return measured(model, 0, "odd")


def refused(setting: dict[str, Any], policy: MixedPrecisionPolicy | None = None) -> str:
    """With which message a monitor refuses a sharded model before training."""
    how = {} if policy is None else {"mp_policy": policy}
    model = tiny.model("llama")
    model.unused = nn.Identity()
    shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), **how)
    try:
        GeometryMonitor(tiny.probe(9), alpha_window=tiny.WINDOW, **setting).start(model)
    except ValueError as error:
        return str(error)
    return "not refused"


def fails_inside(folder: Path) -> dict[str, Any]:
    """The second process dies inside the forward pass, and the first waits for it until the group's time-out."""
    model = shard(whole(), init_device_mesh("cpu", (dist.get_world_size(),)))
    watch = GeometryMonitor(tiny.probe(9), alpha_window=tiny.WINDOW, batch_size=4, on_error="warn")
    watch.start(model)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=5), dist.group.WORLD)

    def die(*args: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    if dist.get_rank() == 1:
        model.get_decoder().layers[1].mlp.register_forward_hook(die)
    begin = time.monotonic()
    try:
        watch.measure(model, 1)
    except RuntimeError as error:
        said = f"{type(error).__name__}: {error}"
    else:
        said = "nothing was raised"
    (folder / f"ended-{dist.get_rank()}").touch()
    while not (folder / "ended-0").exists() and time.monotonic() < begin + 60:
        time.sleep(0.1)  # alive, so that it is the time-out that ends the other's wait
    return {"said": said}


def scenarios(folder: Path) -> dict[str, Callable[[], Any]]:
    world = dist.get_world_size()
    line = init_device_mesh("cpu", (world,))
    if world == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        return {
            "hsdp": lambda: follow(shard(whole(), square), folder, "hsdp"),
            "fsdp and tensor": lambda: follow(
                shard(split_blocks(whole(), square["tensor"]), square["data"]), folder, "fsdp and tensor"
            ),
        }
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    return {
        "fsdp": lambda: follow(shard(whole(), line), folder, "fsdp"),
        "fsdp of another shape": lambda: follow(shard(whole("gpt_neox"), line), folder, "fsdp of another shape"),
        "tensor": lambda: follow(split_blocks(whole(), line), folder, "tensor"),
        "undisturbed": undisturbed,
        "bf16": low_precision,
        "fp32 of bf16": lambda: refused({"precision": "fp32"}, bf16),
        "compiled": lambda: refused({"compile": True}),
        "no such layer": lambda: refused({"layers": "lm_heat"}),
        "not reached": lambda: refused({"layers": "unused"}),
        "fails inside": lambda: fails_inside(folder),  # the last: no group comes back from it
    }


def main(number: int, world_size: int, folder: Path) -> None:
    join(number, world_size, folder, seconds=60)
    found: dict[str, Any] = {"world size": dist.get_world_size()}
    for name, call in scenarios(folder).items():
        found[name] = call()
    (folder / f"rank-{number}.json").write_text(json.dumps(found))
    os._exit(0)  # a group that has timed out is not taken down


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
