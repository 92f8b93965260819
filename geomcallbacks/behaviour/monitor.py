"""BehaviourMonitor: composes measures of behaviour, schedule and record file, as GeometryMonitor does for geometry."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.locate import refuse_sharded, refuse_unsupported, unwrap
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.running.base import RunMonitor
from geomcallbacks.running.processes import from_first, rank
from geomcallbacks.schedule import Schedule
from geomcallbacks.settings import Settings

#: A model in, numbers by name out. It may have `check(model)`, which raises ``ValueError`` before the first update
#: where the two do not fit, and a `fingerprint` of what it measures on, which goes into the file's header.
Measure = Callable[[nn.Module], Mapping[str, float]]


class BehaviourMonitor(RunMonitor):
    """Measures what a model does, in any training loop: call `step` after every optimiser update.

    In a run of several processes, which must all hold the whole model and all call it, the first measures and the
    others are given its numbers.

    Args:
        measures: by name. Each is called with the unwrapped model in evaluation mode, without gradients, under the
            autocast that is active.
        schedule: at which updates to measure.
        path: the record file; None writes none.
        on_error: "warn" once and go on when a measure fails, or "raise".
        total_steps: updates of the run, where known: the last is then measured, and spacing follows its length.

    Raises:
        TypeError, ValueError: an argument is wrong by itself. What needs the model is raised by `start`.
    """

    def __init__(
        self,
        measures: Mapping[str, Measure],
        *,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        path: str | Path | None = None,
        on_error: str = "warn",
        total_steps: int | None = None,
    ) -> None:
        _check_measures(measures)
        super().__init__(schedule, path, on_error, total_steps)
        self.measures = dict(measures)

    @property
    def key(self) -> str:
        """Tells several monitors of one run apart in its checkpoints."""
        return f"behaviour {sorted(self.measures)}"

    def step(self, model: nn.Module, step: int, *, last: bool = False) -> dict[str, float | None]:
        """Measure if it is due after `step` updates, and not yet done.

        Args:
            model: the model as the loop holds it.
            step: optimiser updates that its weights have received.
            last: no update follows, so that it is due in any case.

        Returns:
            `<name>/<key>` of each number, None where it is not finite; empty when nothing was due or all failed.
        """
        return self._if_due(model, step, last, lambda: self.measure(model, step)) or {}

    def measure(self, model: nn.Module, step: int) -> dict[str, float | None]:
        """Measure now, whatever the schedule says. See `step`."""
        values: dict[str, float | None] = {}
        errors: dict[str, Exception] = {}
        with self._measuring(model, step):
            begin = time.perf_counter()
            if rank() == 0:
                values, errors = self._measure_all(model)
            said = {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}
            shared = json.loads(from_first(json.dumps({"values": values, "errors": said}), device_of(model)))
            seconds = time.perf_counter() - begin
            for name, message in shared["errors"].items():
                self._report(name, message, errors.get(name), step)
            values = shared["values"]
            if values and self._writer is not None:
                writer, line = self._writer, {"step": step, "seconds": seconds, **values}
                self._to_file(lambda: writer.write(line))
        return values

    def _measure_all(self, model: nn.Module) -> tuple[dict[str, float | None], dict[str, Exception]]:
        values: dict[str, float | None] = {}
        errors: dict[str, Exception] = {}
        for name, measure in self.measures.items():
            try:
                with leave_no_trace(model), torch.no_grad(), Settings().autocast(device_of(model)):
                    found = measure(unwrap(model))
                values |= {f"{name}/{key}": _finite(value) for key, value in found.items()}
            except Exception as error:
                errors[name] = error
        return values, errors

    def _report(self, name: str, message: str, error: Exception | None, step: int) -> None:
        """Raise, or warn once for each measure and kind of failure: messages carry sizes, and would always differ."""
        if self.on_error == "raise":
            raise error or RuntimeError(f"the first process failed to measure {name!r} ({message})")
        if rank() == 0:
            kind = message.partition(":")[0]
            self._warn_once(f"{name} {kind}", f"{name!r} was not measured at step {step} ({message}); training goes on")

    def _check(self, model: nn.Module) -> None:
        """Parameters that are not sharded, and what each measure checks itself."""
        refuse_sharded(unwrap(model))
        refuse_unsupported(unwrap(model))
        for measure in self.measures.values():
            check = getattr(measure, "check", None)
            if check is not None:
                check(unwrap(model))

    def _about(self) -> dict[str, Any]:
        measures = {
            name: {"kind": type(measure).__name__, "fingerprint": getattr(measure, "fingerprint", None)}
            for name, measure in self.measures.items()
        }
        return {"measures": measures}


def _finite(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _check_measures(measures: Any) -> None:
    if not isinstance(measures, Mapping):
        raise TypeError(f"measures is a {type(measures).__name__}: give them by name, such as {{'loss': measure}}")
    if not measures:
        raise ValueError("measures={} measures nothing: give at least one, by name")
    for name, measure in measures.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"measures has the name {name!r}: give a word without '/'")
        if not callable(measure):
            raise TypeError(f"measure {name!r} is a {type(measure).__name__}: give a function of the model")
