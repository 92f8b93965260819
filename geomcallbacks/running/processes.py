"""The few things that ranks of one run agree on. Without torch.distributed, a run is one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Return the number of this process in the default group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes in the default group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def worst(status: int, groups: tuple[Any, ...], device: torch.device) -> int:
    """Return the largest status of any rank of the groups."""
    if not groups:
        return status
    largest = torch.tensor([status], device=device)
    for group in groups:
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return int(largest.item())


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so."""
    return flag if world_size() == 1 else worst(int(flag), (dist.group.WORLD,), device) > 0


def first_decides(decision: bool, device: torch.device) -> bool:
    """Return the decision of the first rank."""
    return bool(first_numbers([int(decision)], device)[0])


def first_numbers(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return the whole numbers of the first rank; all ranks give equally many."""
    if world_size() == 1 or not numbers:
        return list(numbers)
    shared = torch.tensor(numbers, device=device)
    dist.broadcast(shared, 0)
    return shared.tolist()


def from_first(text: str, device: torch.device) -> str:
    """Return the first rank's text. The others wait for it, no longer than the group's time-out."""
    if world_size() == 1:
        return text
    data = text.encode()
    (size,) = first_numbers([len(data)], device)
    shared = torch.empty(size, dtype=torch.uint8, device=device)
    if rank() == 0:
        shared.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(shared, 0)
    return bytes(shared.tolist()).decode()
