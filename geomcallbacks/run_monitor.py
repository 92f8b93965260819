"""RunMonitor: what all monitors of a training run share: when a measurement is due, and the record file."""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from geomcallbacks.device import device_of
from geomcallbacks.distributed import first_decides, rank
from geomcallbacks.once import WarnOnce
from geomcallbacks.record import RecordWriter
from geomcallbacks.schedule import Ledger, Schedule

Found = TypeVar("Found")


class RunMonitor(ABC):
    """Subclasses say what fits a model (`_check`), what the file's header holds (`_about`), and measure.

    Args:
        schedule: at which updates to measure.
        path: the record file; None writes none.
        on_error: "warn" once and go on when a measurement fails, or "raise".
        total_steps: updates of the run, where known: the last is then measured, and spacing follows its length.

    Raises:
        ValueError: an argument is wrong by itself.
    """

    def __init__(self, schedule: Schedule, path: str | Path | None, on_error: str, total_steps: int | None) -> None:
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error={on_error!r} is unknown: give 'warn' or 'raise'")
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule={schedule!r} is none: give a Schedule, such as Schedule(every=100)")
        if total_steps is not None and total_steps < 0:
            raise ValueError(f"total_steps={total_steps}: give the number of updates of the run, or None")
        self.schedule, self.on_error = schedule, on_error
        self.path = None if path is None else Path(path)
        self.total_steps = self._total_given = total_steps
        self.resumed_from = 0  # update of the checkpoint that the run goes on from
        self.run_id: str | None = None  # of the run that goes on, from its checkpoint
        self._ledger = Ledger(schedule.budget)
        self._writer: RecordWriter | None = None
        self._started = False
        self._last_measured: int | None = None
        self._last_call: tuple[int, float] | None = None
        self._warn_once = WarnOnce()

    @property
    @abstractmethod
    def key(self) -> str:
        """Tells several monitors of one run apart in its checkpoints."""

    @abstractmethod
    def _check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where model and arguments do not fit."""

    @abstractmethod
    def _about(self) -> dict[str, Any]:
        """What the file's header says besides schedule and versions; `settings` are joined to the schedule's."""

    @property
    def record_path(self) -> Path | None:
        """The record file in use: `path`, or the next free name where another run's file stood."""
        return self._writer.path if self._writer is not None else self.path

    def start(self, model: nn.Module, *, step: int = 0, total_steps: int | None = None) -> None:
        """Begin a run: check everything that needs the model, and open the record file.

        Called by `step` if it was not called before; adapters call it before the first update. Calling it again
        begins another run.

        Args:
            model: the model, before the first update.
            step: 0, or the update of the checkpoint from which the run goes on.
            total_steps: updates of the run, where known.

        Raises:
            ValueError: the model and the arguments do not fit.
        """
        self.close()
        self.total_steps = self._total_given if total_steps is None else total_steps
        if step == 0:
            self.run_id = None
        self._check(model)
        self._ledger = Ledger(self.schedule.budget)
        # A checkpoint is written after its update was measured, if that was due.
        self._last_measured = step if step > 0 else None
        self._last_call, self._started = (step, time.perf_counter()), True
        self._to_file(lambda: self._open(step))
        self.run_id = self._writer.run_id if self._writer is not None else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for a checkpoint: the update it is of, and which record file goes on."""
        step = self.resumed_from if self._last_call is None else self._last_call[0]
        return {"step": step, "run_id": self.run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: the record file is continued, not begun anew."""
        self.resumed_from, self.run_id = int(state["step"]), state.get("run_id")

    def close(self) -> None:
        """Close the record file. Closing twice is harmless."""
        if self._writer is not None:
            self._to_file(self._writer.close)
        self._writer, self._started, self.resumed_from = None, False, 0

    def _if_due(self, model: nn.Module, step: int, last: bool, measure: Callable[[], Found]) -> Found | None:
        """What `measure` gives, if a measurement is due after `step` updates, not yet done, and within the budget."""
        self._start_once(model)
        if self._last_call is not None:
            self._ledger.trained(time.perf_counter() - self._last_call[1], step - self._last_call[0])
        found: Found | None = None
        if step != self._last_measured and (last or self.schedule.is_due(step, self.total_steps)):
            if last or self.schedule.is_fixed(step, self.total_steps) or self._within_budget(model):
                found = measure()
            elif self._writer is not None:
                writer = self._writer
                self._to_file(lambda: writer.skip(step, "budget"))
        self._last_call = (step, time.perf_counter())
        return found

    @contextmanager
    def _measuring(self, model: nn.Module, step: int) -> Iterator[None]:
        """Around a measurement: the run has begun, and what it costs is booked."""
        self._start_once(model)
        begin = time.perf_counter()
        self._last_measured = step
        yield
        self._ledger.measured(time.perf_counter() - begin, self.schedule.is_fixed(step, self.total_steps))

    def _start_once(self, model: nn.Module) -> None:
        if not self._started:
            self.start(model, step=self.resumed_from)

    def _within_budget(self, model: nn.Module) -> bool:
        allowed = self._ledger.allows(self.total_steps)
        if self.schedule.budget is None:
            return allowed
        return first_decides(allowed, device_of(model))  # clocks differ between processes

    def _to_file(self, write: Callable[[], None]) -> None:
        """A full disk costs lines of the file, not the run; and not the numbers, which all processes must share."""
        try:
            write()
        except OSError as error:
            if self.on_error == "raise":
                raise
            self._warn_once("file", f"{self.record_path} could not be written ({error}); training goes on without")

    def _open(self, step: int) -> None:
        if self.path is None or rank() != 0:
            return
        about = self._about()
        settings = about.pop("settings", {}) | {"schedule": asdict(self.schedule), "total_steps": self.total_steps}
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        self._writer = RecordWriter(self.path, step, {"settings": settings, "versions": versions, **about}, self.run_id)
