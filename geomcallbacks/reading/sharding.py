"""How a model is spread over the processes of a run, as far as reading it must know.

Replicated models (DDP, or every process with its own copy) hold no collective inside their forward pass. The forward
pass of a sharded model (FSDP2, tensor parallel, DeepSpeed ZeRO-3) does: every process must enter it, through the module
that its shards are gathered for, and as often as all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from geomcallbacks.reading.zero3 import forget_pass, is_partitioned, refuse_unreadable


@dataclass(frozen=True)
class Spread:
    """Which processes share a probe's rows, and whether they need each other to compute one.

    Attributes:
        groups: process groups over which rows differ, one for each data-parallel mesh dimension; what each process
            gathers is summed over one group after another. Processes that hold parts of the same replica (tensor
            parallel) are given the same rows and are in none of them together.
        index: which share of the rows is this process's, from 0.
        count: how many shares there are.
        sharded: parameters are parts (DTensors, or of ZeRO-3), so that a forward pass waits for other processes.
        dtype: in which a sharded model's own policy has it computed; None where it has none.
    """

    groups: tuple[Any, ...] = ()
    index: int = 0
    count: int = 1
    sharded: bool = False
    dtype: torch.dtype | None = None


def spread_of(model: nn.Module) -> Spread:
    """Return how `model`, as the training loop holds it, is spread."""
    if not (dist.is_available() and dist.is_initialized()):
        return Spread()
    from torch.distributed.tensor import DTensor

    states = [module._get_fsdp_state() for module in _fsdp_modules(model)]
    partitioned: Any = next(filter(is_partitioned, model.parameters()), None)
    distributed = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    groups: tuple[Any, ...]
    if isinstance(model, nn.parallel.DistributedDataParallel):
        groups = (model.process_group,)
    elif states:
        # Where parameters lie on several meshes (experts), most rows differ over the widest.
        groups = max(_data_parallel_groups(states), key=_size, default=())
    elif partitioned is not None:
        groups = (partitioned.ds_process_group,)
    else:  # tensor parallel alone: other replicas are unknown, so that each reads all rows
        groups = () if distributed else (dist.group.WORLD,)
    index = 0
    for group in groups:
        index = index * group.size() + group.rank()
    policies = [state._mp_policy.param_dtype for state in states]
    return Spread(
        groups,
        index,
        count=_size(groups),
        sharded=distributed or bool(states) or partitioned is not None,
        dtype=next((dtype for dtype in policies if dtype is not None), None),
    )


def entry_of(model: nn.Module, language_model: nn.Module) -> nn.Module:
    """Return the module to call of a sharded model.

    The outermost FSDP module around the language model, else that itself; under ZeRO-3 the whole model, whose first
    hook begins a pass. Called anywhere further inside, FSDP takes the module it meets first for its root, and later
    refuses the real one.

    Raises:
        ValueError: the whole model, under ZeRO-3, cannot be called with tokens.
    """
    if any(map(is_partitioned, model.parameters())):
        refuse_unreadable(model)
        return model
    around = (module for module in _fsdp_modules(model) if any(child is language_model for child in module.modules()))
    return next(around, language_model)


def release(model: nn.Module) -> None:
    """Put FSDP's parameters, which a root keeps gathered for a backward pass, into shards; let ZeRO-3 forget it."""
    for module in _fsdp_modules(model):
        module.reshard()
    if any(map(is_partitioned, model.parameters())):
        forget_pass(model)


def _fsdp_modules(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _data_parallel_groups(states: list[Any]) -> list[tuple[Any, ...]]:
    """Return the process groups, of each mesh that FSDP has laid parameters on, over which rows differ."""
    found = []
    for state in states:  # one parameter group to a module before torch 2.12, several since
        held = getattr(state, "_fsdp_param_groups", None)
        for parameters in [state._fsdp_param_group] if held is None else held:
            info = getattr(parameters, "mesh_info", None)
            groups = [getattr(info, f"{kind}_process_group", None) for kind in ("replicate", "shard")]
            found.append(tuple(group for group in groups if group is not None))
    return found


def _size(groups: tuple[Any, ...]) -> int:
    return math.prod(group.size() for group in groups)
