"""BehaviourMonitor: composes measures of behaviour, schedule and record file, as GeometryMonitor does for geometry."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomcallbacks.behaviour.share import from_first
from geomcallbacks.distributed import first_decides, rank
from geomcallbacks.hidden import leave_no_trace
from geomcallbacks.locate import refuse_unsupported, unwrap
from geomcallbacks.measure import Settings, device_of
from geomcallbacks.once import WarnOnce
from geomcallbacks.record import RecordWriter
from geomcallbacks.schedule import Ledger, Schedule

#: A model in, numbers by name out. It may have `check(model)`, which raises ``ValueError`` before the first update
#: where the two do not fit, and a `fingerprint` of what it measures on, which goes into the file's header.
Measure = Callable[[nn.Module], Mapping[str, float]]


class BehaviourMonitor:
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
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error={on_error!r} is unknown: give 'warn' or 'raise'")
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule={schedule!r} is none: give a Schedule, such as Schedule(every=100)")
        if total_steps is not None and total_steps < 0:
            raise ValueError(f"total_steps={total_steps}: give the number of updates of the run, or None")
        self.measures, self.schedule, self.on_error = dict(measures), schedule, on_error
        self.path = None if path is None else Path(path)
        self.total_steps = self._total_given = total_steps
        self.run_id: str | None = None  # of the run that goes on, from its checkpoint
        self._ledger = Ledger(schedule.budget)
        self._writer: RecordWriter | None = None
        self._started = False
        self._last_measured: int | None = None
        self._last_call: tuple[int, float] | None = None
        self._warn_once = WarnOnce()

    @property
    def key(self) -> str:
        """Tells several monitors of one run apart in its checkpoints."""
        return f"behaviour {sorted(self.measures)}"

    @property
    def record_path(self) -> Path | None:
        """The record file in use: `path`, or the next free name where another run's file stood."""
        return self._writer.path if self._writer is not None else self.path

    def start(self, model: nn.Module, *, step: int = 0, total_steps: int | None = None) -> None:
        """Begin a run: check everything that needs the model, and open the record file.

        Called by `step` if it was not called before. Calling it again begins another run.

        Args:
            model: the model, before the first update.
            step: 0, or the update of the checkpoint from which the run goes on.
            total_steps: updates of the run, where known.

        Raises:
            ValueError: the model's parameters are sharded, or a measure does not fit it.
        """
        self.close()
        self.total_steps = self._total_given if total_steps is None else total_steps
        if step == 0:
            self.run_id = None
        refuse_unsupported(unwrap(model))
        for measure in self.measures.values():
            check = getattr(measure, "check", None)
            if check is not None:
                check(unwrap(model))
        self._ledger = Ledger(self.schedule.budget)
        # A checkpoint is written after its update was measured, if that was due.
        self._last_measured = step if step > 0 else None
        self._last_call, self._started = (step, time.perf_counter()), True
        self._to_file(lambda: self._open(step))
        self.run_id = self._writer.run_id if self._writer is not None else None

    def step(self, model: nn.Module, step: int, *, last: bool = False) -> dict[str, float | None]:
        """Measure if it is due after `step` updates, and not yet done.

        Args:
            model: the model as the loop holds it.
            step: optimiser updates that its weights have received.
            last: no update follows, so that it is due in any case.

        Returns:
            `<name>/<key>` of each number, None where it is not finite; empty when nothing was due or all failed.
        """
        if not self._started:
            self.start(model)
        if self._last_call is not None:
            self._ledger.trained(time.perf_counter() - self._last_call[1], step - self._last_call[0])
        values: dict[str, float | None] = {}
        if step != self._last_measured and (last or self.schedule.is_due(step, self.total_steps)):
            if last or self.schedule.is_fixed(step, self.total_steps) or self._within_budget(model):
                values = self.measure(model, step)
            elif self._writer is not None:
                writer = self._writer
                self._to_file(lambda: writer.skip(step, "budget"))
        self._last_call = (step, time.perf_counter())
        return values

    def measure(self, model: nn.Module, step: int) -> dict[str, float | None]:
        """Measure now, whatever the schedule says. See `step`."""
        if not self._started:
            self.start(model)
        begin = time.perf_counter()
        self._last_measured = step
        values: dict[str, float | None] = {}
        errors: dict[str, Exception] = {}
        if rank() == 0:
            values, errors = self._measure_all(model)
        said = {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}
        shared = json.loads(from_first(json.dumps({"values": values, "errors": said}), device_of(model)))
        seconds = time.perf_counter() - begin
        self._ledger.measured(seconds, self.schedule.is_fixed(step, self.total_steps))
        for name, message in shared["errors"].items():
            self._report(name, message, errors.get(name), step)
        values = shared["values"]
        if values and self._writer is not None:
            writer, line = self._writer, {"step": step, "seconds": seconds, **values}
            self._to_file(lambda: writer.write(line))
        return values

    def close(self) -> None:
        """Close the record file. Closing twice is harmless."""
        if self._writer is not None:
            self._to_file(self._writer.close)
        self._writer, self._started = None, False

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

    def _within_budget(self, model: nn.Module) -> bool:
        allowed = self._ledger.allows(self.total_steps)
        if self.schedule.budget is None:
            return allowed
        return first_decides(allowed, device_of(model))  # clocks differ between processes

    def _to_file(self, write: Callable[[], None]) -> None:
        """A full disk costs lines of the file, not the run."""
        try:
            write()
        except OSError as error:
            if self.on_error == "raise":
                raise
            self._warn_once("file", f"{self.record_path} could not be written ({error}); training goes on without")

    def _open(self, step: int) -> None:
        if self.path is not None and rank() == 0:
            self._writer = RecordWriter(self.path, step, self._header(), self.run_id)

    def _header(self) -> dict[str, Any]:
        measures = {
            name: {"kind": type(measure).__name__, "fingerprint": getattr(measure, "fingerprint", None)}
            for name, measure in self.measures.items()
        }
        return {
            "settings": {"schedule": asdict(self.schedule), "total_steps": self.total_steps},
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
            "measures": measures,
        }


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
