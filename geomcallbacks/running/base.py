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

from geomcallbacks.reading.device import device_of
from geomcallbacks.running.budget import Ledger
from geomcallbacks.running.messages import WarnOnce
from geomcallbacks.running.processes import any_process, first_decides, rank
from geomcallbacks.running.writer import RecordWriter
from geomcallbacks.schedule import Schedule

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
        self.spent: Mapping[str, float] | None = None  # what measuring had cost it, from its checkpoint
        self._ledger = Ledger(schedule.budget)
        self._writer: RecordWriter | None = None
        self._started = False
        self._last_measured: int | None = None  # update whose measurement is settled: taken, failed or skipped
        self._loaded: Mapping[str, Any] | None = None  # state of the checkpoint from which the next start goes on
        self._last_step: int | None = None
        self._clock = (0, 0.0)  # update and time up to which training is booked
        self._optional = False  # whether the measurement under way is one that the budget let through
        self._warn_once = WarnOnce()
        #: Says whether the process has been told to end, so that nothing is measured any more. Set by adapters to what
        #: their framework knows of SIGTERM; a signal handler of our own there is none.
        self.ending: Callable[[], bool] | None = None

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
            self.run_id = self.spent = None
        self._check(model)
        self._ledger = Ledger(self.schedule.budget, step, self.spent)
        loaded, self._loaded = self._loaded or {}, None
        self._last_measured = loaded.get("measured", step) if step > 0 else None
        self._last_step, self._clock, self._started = step, (step, time.perf_counter()), True
        self._to_file(lambda: self._open(step))
        self.run_id = self._writer.run_id if self._writer is not None else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for a checkpoint: the update it is of, which record file goes on, and, where there
        is a budget, what of it is spent.
        """
        step = self.resumed_from if self._last_step is None else self._last_step
        measured = self._last_measured if self._loaded is None else self._loaded.get("measured")
        state: dict[str, Any] = {"step": step, "measured": measured, "run_id": self.run_id}
        if self.schedule.budget is not None:
            state["spent"] = self.spent if self._last_step is None else self._ledger.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: record file and budget are continued, not begun anew."""
        self.resumed_from, self.run_id, self.spent = int(state["step"]), state.get("run_id"), state.get("spent")
        self._loaded = dict(state)

    def close(self) -> None:
        """Close the record file. Closing twice is harmless."""
        if self._writer is not None:
            self._to_file(self._writer.close)
        self._writer, self._started, self.resumed_from = None, False, 0

    def _if_due(self, model: nn.Module, step: int, last: bool, measure: Callable[[], Found]) -> Found | None:
        """What `measure` gives, if a measurement is due after `step` updates, not yet done, and within the budget."""
        self._start_once(model)
        step = int(step)
        due = step != self._last_measured and (last or self.schedule.is_due(step, self.total_steps))
        if due or not self._ledger.warm:
            self._book_training(model, step, wait=due)
        self._last_step = step
        if not due or self._is_ending(model):
            return None
        fixed = last or self.schedule.is_fixed(step, self.total_steps)
        if not fixed and not self._within_budget(model):
            self._last_measured = step
            self._skip(step)
            return None
        self._optional = not fixed
        try:
            return measure()
        finally:
            self._optional = False

    @contextmanager
    def _measuring(self, model: nn.Module, step: int) -> Iterator[None]:
        """Around a measurement: the run has begun, and what it costs is booked."""
        self._start_once(model)
        begin = time.perf_counter()
        self._last_measured = step
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._clock = (self._clock[0], self._clock[1] + seconds)  # it is no training
            self._ledger.measured(seconds, fixed=not self._optional)

    def _book_training(self, model: nn.Module, step: int, wait: bool) -> None:
        """Book the time since training was last booked. `wait`: with all that a device still has to do for it, which
        the measurement would otherwise be charged with.
        """
        device = device_of(model)
        if wait and self.schedule.budget is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)
        now = time.perf_counter()
        self._ledger.trained(now - self._clock[1], step - self._clock[0])
        self._clock = (step, now)

    def _skip(self, step: int) -> None:
        """Note in the record file that the budget did not allow a measurement; say so once."""
        if rank() != 0:  # the others' ledgers decide nothing
            return
        account = self._ledger.account(self.total_steps)
        if self._ledger.knows_pace:
            cost, spent, allowed = (f"{account[key]:.3g} s" for key in ("cost", "spent", "allowed"))
            self._warn_once(
                "budget",
                f"budget={self.schedule.budget} does not allow the measurement at step {step}: one takes up to {cost},"
                f" and of {allowed} allowed by now {spent} are spent. What else is skipped stands in the record file",
            )
        if self._writer is not None:
            writer = self._writer
            self._to_file(lambda: writer.skip(step, "budget", account))

    def _is_ending(self, model: nn.Module) -> bool:
        """Whether any process has been told to end: a signal does not reach all of them at once."""
        return self.ending is not None and any_process(self.ending(), device_of(model))

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
        except Exception as error:
            if self.on_error == "raise":
                raise
            said = f"{type(error).__name__}: {error}"
            self._warn_once("file", f"{self.record_path} could not be written ({said}); training goes on without")

    def _open(self, step: int) -> None:
        if self.path is None or rank() != 0:
            return
        about = self._about()
        settings = about.pop("settings", {}) | {"schedule": asdict(self.schedule), "total_steps": self.total_steps}
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        self._writer = RecordWriter(self.path, step, {"settings": settings, "versions": versions, **about}, self.run_id)
