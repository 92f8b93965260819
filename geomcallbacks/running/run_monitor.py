"""RunMonitor: decides whether to measure at an update, and keeps the record file. All monitors share it."""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from geomcallbacks.reading.device import device_of
from geomcallbacks.running.budget import Budget
from geomcallbacks.running.messages import OnError, WarnOnce
from geomcallbacks.running.processes import (
    alive,
    all_alike,
    announce,
    any_process,
    first_decides,
    rank,
    refusing_together,
)
from geomcallbacks.running.record_writer import RecordWriter
from geomcallbacks.schedule import Schedule

_ALIKE = (
    "add the callback, or call the monitor, on every process of the run, with the same settings, and with a probe or"
    " measures built from the same texts and seed, never from a process's own share of the data"
)

#: Whether the budget had a say in a measurement that is due.
Due = Literal["optional", "fixed"]


@dataclass
class Run:
    """What belongs to one run, from `start` to `close`.

    Attributes:
        total_steps: updates of the run, where known.
        ending: says whether this process has been told to end.
        budget: what measuring has cost; None where the schedule sets no bound.
        step: the last update that was asked about.
        settled: the last update whose measurement was taken, failed or skipped.
        run_id: names the run, also after it is resumed.
        writer: of the record file; None without one, and on all ranks but the first.
    """

    total_steps: int | None
    ending: Callable[[], bool] | None
    budget: Budget | None
    step: int
    settled: int | None
    run_id: str | None = None
    writer: RecordWriter | None = None


class RunMonitor(ABC):
    """Decide when to measure, and keep the record file. Subclasses measure.

    Args:
        schedule: at which updates to measure.
        path: the record file, whatever `start` is given.
        on_error: "warn" once and go on when a measurement fails, or "raise".
        total_steps: updates of the run, where `start` is not told.

    Attributes:
        record_path: the record file of the latest run: `path`, or the next free name where another run's file stood.

    Raises:
        ValueError: an argument is wrong by itself.
    """

    def __init__(self, schedule: Schedule, path: str | Path | None, on_error: OnError, total_steps: int | None) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error={on_error!r} is unknown: give 'warn' or 'raise'")
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule={schedule!r} is none: give a Schedule, such as Schedule(every=100)")
        if total_steps is not None and total_steps < 0:
            raise ValueError(f"total_steps={total_steps}: give the number of updates of the run, or None")
        self.schedule, self.on_error, self.total_steps = schedule, on_error, total_steps
        self.path = self.record_path = None if path is None else Path(path)
        self._run: Run | None = None
        self._state: dict[str, Any] = {}  # of the run before `start` or after `close`
        self._resumes = False  # whether the next start goes on from that state
        self._warn_once = WarnOnce()
        announce()

    @property
    @abstractmethod
    def key(self) -> str:
        """Tell several monitors of one run apart in its checkpoints."""

    @abstractmethod
    def step(self, model: nn.Module, step: int, *, tokens: int | None = None, last: bool = False) -> Any:
        """Measure if it is due after `step` updates; return what was found, empty where nothing was."""

    @abstractmethod
    def _prepare(self, model: nn.Module) -> None:
        """Resolve what is measured of the model; raise ``ValueError`` where model and arguments do not fit."""

    def _begin(self, run: Run, model: nn.Module, step: int) -> None:  # noqa: B027 (there may be nothing)
        """Prepare what a subclass keeps of a run. Its file is open."""

    @abstractmethod
    def _header(self) -> dict[str, Any]:
        """Return what the file's header says besides schedule and versions; `settings` are joined to the schedule's."""

    @property
    def resumed_from(self) -> int:
        """The update from which the next start goes on; 0 for a new run."""
        return int(self._state["step"]) if self._resumes else 0

    def start(
        self,
        model: nn.Module,
        *,
        step: int = 0,
        total_steps: int | None = None,
        path: str | Path | None = None,
        ending: Callable[[], bool] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a run: check everything that needs the model, and open the record file.

        `due` calls it if it was not called before; adapters call it before the first update. Calling it again begins
        another run.

        Args:
            model: the model, before the first update.
            step: 0, or the update of the checkpoint from which the run goes on.
            total_steps: updates of the run, where known.
            path: the record file where the constructor was given none.
            ending: says whether this process has been told to end. Nothing is measured any more then. We install no
                signal handler.
            state: of the checkpoint, as `state_dict` gave it; None: what `load_state_dict` was given, if anything.

        Raises:
            ValueError: the model and the arguments do not fit, or the checkpoint's run was measured otherwise.
        """
        self.close()
        if state is not None:
            self.load_state_dict(state)
        known = self._state if self._resumes and step > 0 else {}
        share = self.schedule.budget
        budget = None if share is None else Budget(share, step, time.perf_counter(), known.get("spent"))
        total = self.total_steps if total_steps is None else total_steps
        settled = known.get("measured", step) if step > 0 else None
        run = Run(total, ending, budget, step, settled, known.get("run_id"))
        device = device_of(model)
        all_alike(self._facts(run), _ALIKE, device)
        with alive(), refusing_together(device):
            self._prepare(model)
        self._run, self._resumes = run, False
        self.record_path = self.path or (None if path is None else Path(path))
        if self.record_path is not None and rank() == 0:
            with self._keep_going():
                run.writer = RecordWriter(self.record_path, step, self._whole_header(run), run.run_id)
                run.run_id, self.record_path = run.writer.run_id, run.writer.path
        self._begin(run, model, step)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings for a checkpoint: its update, its record file, what of a budget is spent."""
        run = self._run
        if run is None or self._resumes:
            return {"step": 0, "measured": None, "run_id": None} | self._state
        state: dict[str, Any] = {"step": run.step, "measured": run.settled, "run_id": run.run_id}
        return state if run.budget is None else state | {"spent": run.budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint at the next start: record file and budget are continued, not begun anew."""
        self._state, self._resumes = dict(state), True

    def close(self) -> None:
        """Close the record file. Closing twice is harmless."""
        if self._run is None:
            return
        if not self._resumes:
            self._state = RunMonitor.state_dict(self)
        if self._run.writer is not None:
            with self._keep_going():
                self._run.writer.close()
        self._run = None

    def due(self, model: nn.Module, step: int, *, last: bool = False) -> Due | None:
        """Decide whether to measure after `step` updates: due by the schedule, not yet settled, and within the budget.

        The time since the last call is booked as training. A measurement that the budget does not allow is settled
        here: it is noted in the record file, and warned of once.

        Args:
            model: the model as the loop holds it.
            step: optimiser updates that its weights have received.
            last: no update follows.

        Returns:
            "fixed" for the first, the last and those that the schedule names; "optional" for the others; None.
        """
        run, step, device = self._run_of(model), int(step), device_of(model)
        due = step != run.settled and (last or self.schedule.is_due(step, run.total_steps))
        # The first update is booked by itself, since it is no pace; the others whenever something is due.
        if run.budget is not None and (due or not run.budget.warm):
            if due and device.type != "cpu":
                torch.accelerator.synchronize(device)  # or what training left for it to do would count as measuring
            run.budget.trained(step, time.perf_counter())
        run.step = step
        if not due or (run.ending is not None and any_process(run.ending(), device)):
            return None
        if last or self.schedule.is_fixed(step, run.total_steps):
            return "fixed"
        # Clocks differ between ranks.
        if run.budget is None or first_decides(run.budget.allows(run.total_steps), device):
            return "optional"
        run.settled = step
        self._skip(run, run.budget, step)
        return None

    def _run_of(self, model: nn.Module) -> Run:
        """Return the run, and begin it where nobody has."""
        if self._run is None:
            self.start(model, step=self.resumed_from)
            assert self._run is not None
        return self._run

    @contextmanager
    def _measuring(self, model: nn.Module, step: int, kind: Due) -> Iterator[Run]:
        """Settle the update, and book what the measurement inside costs."""
        run = self._run_of(model)
        begin = time.perf_counter()
        run.settled = step
        try:
            yield run
        finally:
            if run.budget is not None:
                run.budget.measured(time.perf_counter() - begin, optional=kind == "optional")

    def _skip(self, run: Run, budget: Budget, step: int) -> None:
        """Note in the record file that the budget did not allow a measurement; warn once."""
        if rank() != 0:  # the other ranks' clocks decide nothing
            return
        account = budget.account(run.total_steps)
        if budget.knows_pace:
            cost, spent, allowed = (f"{account[key]:.3g} s" for key in ("cost", "spent", "allowed"))
            self._warn_once(
                "budget",
                f"budget={budget.share} does not allow the measurement at step {step}: one takes {cost}, and of"
                f" {allowed} allowed by now {spent} are spent. What else is skipped stands in the record file",
            )
        if run.writer is not None:
            with self._keep_going():
                run.writer.skip(step, "budget", account)

    @contextmanager
    def _keep_going(self) -> Iterator[None]:
        """Warn of a file that cannot be written and go on: the numbers are shared by all ranks."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
            self._warn_once("file", f"{self.record_path} could not be written ({reason}); training goes on without")

    def _facts(self, run: Run) -> dict[str, Any]:
        """Return what must be alike on all processes: what is measured, how, and when."""
        header = self._whole_header(run)
        facts = {"what is measured": f"{type(self).__name__} {self.key}", **header.pop("settings"), **header}
        facts |= {"on_error": self.on_error, "step": run.step, "measured": run.settled}
        return facts | {"versions": None, "ending": run.ending is not None}

    def _whole_header(self, run: Run) -> dict[str, Any]:
        header = self._header()
        settings = header.get("settings", {}) | {"schedule": asdict(self.schedule), "total_steps": run.total_steps}
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        return {"versions": versions} | header | {"settings": settings}
