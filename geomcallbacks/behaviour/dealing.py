"""How the processes of a run share the measuring of behaviour: each takes some batches, and the first sums up."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomcallbacks.reading.device import device_of, float64_device
from geomcallbacks.reading.locate import unwrap
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.running.messages import reason_of
from geomcallbacks.running.processes import meet, rank, release_frames, world_size
from geomcallbacks.settings import ReadingSettings
from geomcallbacks.statistics import finite

#: A model in, numbers by name out. It may have `check(model)`, which raises ``ValueError`` before the first update
#: where the two do not fit, and a `fingerprint` of what it measures on, which goes into the file's header.
Measure = Callable[[nn.Module], Mapping[str, float]]

Found = tuple[dict[str, float | None], dict[str, str], dict[str, Exception]]
"""`<name>/<key>` of each number, None where it is not finite; by the name of each measure that failed the reason; and
what this process has raised."""


class Dealt(ABC):
    """A measure whose work can be dealt: what the processes' parts sum up to does not depend on their number."""

    @abstractmethod
    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Return this process's part (s,), zero where others have theirs: on the CPU, float64 or int64."""

    @abstractmethod
    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """Return the numbers by name, from the sum (s,) of all parts."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Measure alone; see `numbers` for what is returned, and `part` for what is raised."""
        return self.numbers(self.part(model))


def measure_together(measures: Mapping[str, Measure], model: nn.Module) -> Found:
    """Take each measure of a model that every process holds whole, and leave no trace on it.

    Each process takes its part of a `Dealt`. Any other function is called on the first process alone. Whoever waits
    does so in no collective, so that a measure may take longer than the group's time-out.
    """
    device = device_of(model)
    parts: dict[str, Tensor] = {}
    errors: dict[str, Exception] = {}
    values: dict[str, float | None] = {}
    for name, measure in measures.items() if world_size() > 1 else ():
        if isinstance(measure, Dealt):
            with _catching(errors, name), _quiet(model):
                parts[name] = measure.part(unwrap(model), rank(), world_size())
    reasons = _shared(_reasons(errors), device) if world_size() > 1 else {}
    for name in [name for name in parts if name not in reasons]:  # in the same order on all processes
        shared = parts[name].to(float64_device(device))
        dist.all_reduce(shared)
        parts[name] = shared.cpu()
    for name, measure in measures.items() if rank() == 0 else ():
        if name not in reasons:
            with _catching(errors, name), _quiet(model):
                whole = isinstance(measure, Dealt) and name in parts
                found = measure.numbers(parts[name]) if whole else measure(unwrap(model))  # type: ignore[attr-defined]
                numbers = {key: None if value is None else finite(float(value)) for key, value in found.items()}
                values |= {f"{name}/{key}": number for key, number in numbers.items()}
    told = meet(json.dumps([values, _reasons(errors) | reasons]), lambda words: words[0], device)
    values, reasons = json.loads(told)
    return values, reasons, errors


def _shared(reasons: dict[str, str], device: torch.device) -> dict[str, str]:
    """Return what failed on any process, by the name of the measure."""

    def join(words: list[str]) -> str:
        return json.dumps({name: reason for word in reversed(words) for name, reason in json.loads(word).items()})

    joined: dict[str, str] = json.loads(meet(json.dumps(reasons), join, device))
    return joined


def _reasons(errors: Mapping[str, Exception]) -> dict[str, str]:
    return {name: reason_of(error) for name, error in errors.items()}


@contextmanager
def _catching(errors: dict[str, Exception], name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        errors[name] = error
    if name in errors:
        release_frames(errors[name])


@contextmanager
def _quiet(model: nn.Module) -> Iterator[Any]:
    """Inside: evaluation mode, no gradients, and the autocast that is active. Afterwards all is as it was."""
    with leave_no_trace(model), torch.no_grad(), ReadingSettings().autocast(device_of(model)):
        yield
