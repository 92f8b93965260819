"""Seconds of several calls, taken in turn, and the memory that each needs."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import numpy as np
import torch

Calls = Mapping[str, Callable[[], Any]]


@dataclass
class Cost:
    """What a call took: seconds of each round, and MiB at its peak beyond what was held before (None: not known).

    `result` is what its first round returned.
    """

    seconds: list[float]
    peak_mib: float | None
    result: Any = None


def in_turn(calls: Calls, device: torch.device, rounds: int = 7, limit: float = 60.0) -> dict[str, Cost]:
    """Return the cost of each call, one round of all after another, so that a noisy machine is noisy for all.

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
            found[name].seconds = [*kept, _timed(call, device)[0]]
    return found


def rows_of(costs: Mapping[str, Cost], ours: str) -> list[dict[str, Any]]:
    """Return a row for each side: its median time, and that as a multiple of ours."""
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


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Return the slope of log seconds over log size, by least squares: 1 is proportional."""
    return linear_regression(np.log(sizes), np.log(seconds)).slope


def _first(call: Callable[[], Any], device: torch.device) -> Cost:
    peak_mib = _watch_memory(device)
    seconds, result = _timed(call, device)
    return Cost([seconds], peak_mib(), result)


def _watch_memory(device: torch.device) -> Callable[[], float | None]:
    """Begin a new peak; the function returned tells it in MiB beyond what is held now."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - held) / 2**20
    if sys.platform != "linux":
        return lambda: None
    ctypes.CDLL(None).malloc_trim(0)  # freed pages that malloc keeps would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")
    resident = _resident_kib("VmRSS")
    return lambda: (_resident_kib("VmHWM") - resident) / 2**10


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that one call takes, the device's work included, and what it returned."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - begin, result


def _resident_kib(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
