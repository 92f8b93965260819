"""Seconds of several calls, taken in turn, and the memory that each needs."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

Calls = Mapping[str, Callable[[], Any]]


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that one call takes, the device's work included."""
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begin


@dataclass
class Cost:
    """What a call took: seconds of each round, and MiB at its peak beyond what was held before (None: not known)."""

    seconds: list[float]
    peak_mib: float | None


def in_turn(calls: Calls, device: torch.device, rounds: int = 7, limit: float = 60.0) -> dict[str, Cost]:
    """The cost of each call, one round of all after another, so that a noisy machine is noisy for all.

    Args:
        calls: what is timed, by name.
        device: where it runs.
        rounds: so many, and one before them that warms up and shows the peak of memory.
        limit: seconds after which no further round begins. Where the first has used them up, its times count.
    """
    begin = time.perf_counter()
    found = {name: _first(call, device) for name, call in calls.items()}
    for number in range(rounds):
        if time.perf_counter() - begin > limit:
            break
        for name, call in calls.items():
            kept = found[name].seconds if number else []
            found[name].seconds = [*kept, seconds_of(call, device)]
    return found


def rows_of(costs: Mapping[str, Cost], ours: str) -> list[dict[str, Any]]:
    """A row for each side: its median time, and that as a multiple of ours."""
    base = median(costs[ours].seconds)
    return [
        {
            "method": name,
            "seconds": median(cost.seconds),
            "times ours": median(cost.seconds) / base,
            "rounds": len(cost.seconds),
            "peak MiB": cost.peak_mib,
        }
        for name, cost in costs.items()
    ]


def _first(call: Callable[[], Any], device: torch.device) -> Cost:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = seconds_of(call, device)
        return Cost([seconds], (torch.cuda.max_memory_allocated() - before) / 2**20)
    if sys.platform != "linux":
        return Cost([seconds_of(call, device)], None)
    ctypes.CDLL(None).malloc_trim(0)  # freed pages that malloc keeps would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident_kib("VmRSS")
    seconds = seconds_of(call, device)
    return Cost([seconds], (_resident_kib("VmHWM") - before) / 2**10)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of log seconds over log size, by least squares: 1 is proportional."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(seconds).double().log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _resident_kib(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
