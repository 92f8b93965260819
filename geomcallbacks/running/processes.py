"""The few things that processes of one run agree on. Without torch.distributed, a run is one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Number of this process in the default group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the default group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def worst(status: int, groups: tuple[Any, ...], device: torch.device) -> int:
    """The largest status of any process of the groups."""
    if not groups:
        return status
    largest = torch.tensor([status], device=device)
    for group in groups:
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return int(largest.item())


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so."""
    if world_size() == 1:
        return flag
    return worst(int(flag), (dist.group.WORLD,), device) > 0


def first_decides(decision: bool, device: torch.device) -> bool:
    """The decision of the first process."""
    if world_size() == 1:
        return decision
    decided = torch.tensor([int(decision)], device=device)
    dist.broadcast(decided, 0)
    return bool(decided.item())


def from_first(text: str, device: torch.device) -> str:
    """The first process's text, in every process. The others wait for it, no longer than the group's time-out."""
    if world_size() == 1:
        return text
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([data.numel()], device=device)
    dist.broadcast(size, 0)
    if rank() != 0:
        data = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()
