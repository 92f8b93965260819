"""RunMonitor: decides whether to measure at an update, and keeps the record file. All monitors share it."""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from geomcallbacks.reading.device import device_of
from geomcallbacks.running import processes
from geomcallbacks.running.budget import Budget
from geomcallbacks.running.messages import OnError, WarnOnce, reason_of
from geomcallbacks.running.record_writer import RecordWriter
from geomcallbacks.running.run import ALIKE, Run
from geomcallbacks.running.run_file import RunFile, place_of
from geomcallbacks.schedule import Schedule

#: Whether the budget had a say in a measurement that is due.
Due = Literal["optional", "fixed"]


class RunMonitor(ABC):
    """Decide when to measure, and keep the record file. Subclasses measure.

    Args:
        schedule: at which updates to measure.
        path: the record file, whatever `start` is given.
        on_error: "warn" once and go on when a measurement fails, or "raise".
        total_steps: updates of the run, where `start` is not told.

    Attributes:
        record_path: the record file of the latest run: `path`, or the next free name where another run's file stood.
        failed: why the latest measurement failed, by the part of it that did: a probe's label, a measure's name.

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
        self.path = self.record_path = place_of(path)
        self.failed: dict[str, str] = {}
        self._run: Run | None = None
        self._state: dict[str, Any] = {}  # of the run before `start` or after `close`
        self._resumes = False  # whether the next start goes on from that state
        self._warn_once = WarnOnce()
        processes.announce()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open run behind: a copy (`deepcopy`, a spawned process) measures a run of its own."""
        return vars(self) | {"_run": None, "_state": self.state_dict(), "record_path": self.path, "failed": {}}

    @property
    @abstractmethod
    def key(self) -> str:
        """Tell several monitors of one run apart in its checkpoints."""

    #: Last parts of the keys under which its numbers are logged, where they are known beforehand.
    names: Sequence[str] = ()

    @property
    @abstractmethod
    def prefixes(self) -> list[str]:
        """The keys under which its numbers are logged, without their last parts."""

    @abstractmethod
    def step(self, model: nn.Module, step: int, *, tokens: int | None = None, last: bool = False) -> Any:
        """Measure if it is due after `step` updates; return what was found, empty where nothing was."""

    @abstractmethod
    def measure(self, model: nn.Module, step: int, *, tokens: int | None = None, kind: Due = "fixed") -> Any:
        """Measure now, whatever the schedule says; see `step`."""

    @abstractmethod
    def _prepare(self, model: nn.Module) -> None:
        """Resolve what is measured of the model; raise ``ValueError`` where model and arguments do not fit."""

    def _begin(self, run: Run, model: nn.Module, step: int) -> None:  # noqa: B027 (there may be nothing)
        """Prepare what a subclass keeps of a run. Its file is open."""

    @abstractmethod
    def _header(self) -> dict[str, Any]:
        """Return what the file's header says besides schedule and versions; `settings` are joined to the schedule's."""

    @property
    def running(self) -> bool:
        """Whether a run is open."""
        return self._run is not None

    @property
    def resumed_from(self) -> int:
        """The update from which the next start goes on; 0 for a new run."""
        return int(self._state["step"]) if self._resumes else 0

    @property
    def resumed_file(self) -> Path | None:
        """The file of the run that the next start goes on with, where the checkpoint names one."""
        file = self._state.get("file") if self._resumes else None
        return None if file is None else Path(file)

    def start(
        self,
        model: nn.Module,
        *,
        step: int = 0,
        total_steps: int | None = None,
        path: str | Path | None = None,
        ending: Callable[[], bool] | None = None,
        state: Mapping[str, Any] | None = None,
        again: bool = False,
        header: Mapping[str, Any] | None = None,
        driven: bool = False,
        weights: Callable[[], str] | None = None,
    ) -> None:
        """Begin a run: check everything that needs the model, and open the record file.

        `due` calls it if it was not called before; adapters call it before the first update. Calling it again begins
        another run. A run that goes on without a state begins a file of its own: nothing tells whose the others are.

        Args:
            model: the model, before the first update.
            step: 0, or the update of the checkpoint from which the run goes on.
            total_steps: updates of the run, where known.
            path: the record file where the constructor was given none.
            ending: says whether this process has been told to end. Nothing is measured any more then. We install no
                signal handler.
            state: of the checkpoint, as `state_dict` gave it; None: what `load_state_dict` was given, if anything.
            again: the open run has failed and begins anew at update 0, in the same file.
            header: what the file's header says besides.
            driven: the arithmetic of training, autocast or none, is active whenever the monitor is called.
            weights: asked at each measurement which weights the model holds, where the loop knows better than the
                model; with a schedule-free optimiser ``lambda: held_by_optimizers([optimizer])``.

        Raises:
            ValueError: the model and the arguments do not fit, or the checkpoint's run was measured otherwise.
        """
        step, before = int(step), self._run if again else None
        self.close()
        if state is not None:
            self.load_state_dict(state)
        known = self._state if self._resumes and step > 0 else {}
        share = self.schedule.budget
        budget = None if share is None else Budget(share, step, time.perf_counter(), known.get("spent"))
        total = self.total_steps if total_steps is None else total_steps
        settled = known.get("measured", step) if step > 0 else None
        file = RunFile(self.on_error, self._warn_once)
        attempt = 1 if before is None else before.attempt + 1
        run = Run(total, ending, budget, step, settled, file, attempt, driven, weights)
        device = device_of(model)
        processes.assemble()
        processes.all_alike(self._facts(run), ALIKE, device)
        with processes.alive(), processes.refusing_together(device):
            problem = self._try(model)
        run_id = known.get("run_id") if before is None else before.file.run_id
        place = self.path or place_of(path)
        file.open(place, step, {**self._whole_header(run), **(header or {})}, run_id, self.resumed_file)
        self._run, self._resumes, self.record_path = run, False, file.path
        if problem is not None:
            self._fail(run, step, "trial", problem, "the trial pass failed, so that the model is not checked")
        self._begin(run, model, step)

    def _try(self, model: nn.Module) -> str | None:
        """Check the model; return why that was not possible. Raise what is wrong with the arguments."""
        try:
            self._prepare(model)
        except (ValueError, TypeError):
            raise
        except Exception as error:
            if self.on_error == "raise" or hasattr(error, "ends_run"):
                raise
            return reason_of(error)  # not the error: its frames hold what has filled the memory
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings for a checkpoint: its update, its record file, what of a budget is spent."""
        if (run := self._run) is None or self._resumes:
            return {"step": 0, "measured": None, "run_id": None, "file": None} | self._state
        file = None if run.file.path is None else str(run.file.path.resolve())
        state: dict[str, Any] = {"step": run.step, "measured": run.settled, "run_id": run.file.run_id, "file": file}
        return state if run.budget is None else state | {"spent": run.budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint at the next start or step: record file and budget are continued, not begun anew."""
        if not isinstance(state.get("step"), int):
            raise ValueError(f"step={state.get('step')!r} of the state is no update: give what state_dict() returned")
        self._state, self._resumes = dict(state), True

    def close(self) -> None:
        """Close the record file. Closing twice is harmless."""
        if self._run is None:
            return
        if not self._resumes:
            self._state = RunMonitor.state_dict(self)
        self._run.file.keep(RecordWriter.close)
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
        step, device, self.failed = int(step), device_of(model), {}
        run = self._run_of(model, step)
        due = step != run.settled and (last or self.schedule.is_due(step, run.total_steps))
        # The first update is booked by itself, since it is no pace; the others whenever something is due.
        if run.budget is not None and (due or not run.budget.warm):
            if due and device.type != "cpu":
                torch.accelerator.synchronize(device)  # or what training left for it to do would count as measuring
            run.budget.trained(step, time.perf_counter())
        run.step = step
        if not due or (run.ending is not None and processes.any_process(run.ending(), device)):
            return None
        if last or self.schedule.is_fixed(step, run.total_steps):
            return "fixed"
        # Clocks differ between ranks.
        if run.budget is None or processes.first_decides(run.budget.allows(run.total_steps), device):
            return "optional"
        run.settled = step
        self._skip(run, run.budget, step)
        return None

    def _run_of(self, model: nn.Module, step: int) -> Run:
        """Return the run, and begin it where nobody has: before `step`, its first update.

        A state taken before the monitor's step of the same update does not know of that. One that was loaded into an
        open run leads it back, or, where it is of the present update, changes nothing.
        """
        begin = max(self.resumed_from, step - 1) if self._resumes else 0
        if (run := self._run) is None:
            self.start(model, step=begin)
        elif self._resumes and self.resumed_from != run.step:
            same = {name: getattr(run, name) for name in ("total_steps", "ending", "driven", "weights")}
            self.start(model, step=begin, path=run.file.path, again=begin == 0, **same)
        self._resumes = False
        assert self._run is not None
        return self._run

    @contextmanager
    def _measuring(self, model: nn.Module, step: int, kind: Due) -> Iterator[Run]:
        """Settle the update, and book what the measurement inside costs."""
        run = self._run_of(model, step)
        begin = time.perf_counter()
        run.settled, self.failed = step, {}
        try:
            yield run
        finally:
            if run.budget is not None:
                run.budget.measured(time.perf_counter() - begin, optional=kind == "optional")

    def _skip(self, run: Run, budget: Budget, step: int) -> None:
        """Note in the record file that the budget did not allow a measurement; warn once."""
        if processes.rank() != 0:  # the other ranks' clocks decide nothing
            return
        if budget.knows_pace:
            self._warn_once("budget", budget.told(step, run.total_steps))
        run.file.keep(RecordWriter.skip, step, "budget", **budget.account(run.total_steps))

    def _fail(self, run: Run, step: int, part: str, reason: str, told: str) -> None:
        """Note a part that failed in the file, and once in words for each kind, unless another process tells of it."""
        self.failed[part] = reason
        if told:  # messages carry sizes and addresses, and would differ at every measurement
            self._warn_once(f"{part} {reason.partition(':')[0]}", f"{told} ({reason}); training goes on")
        run.file.keep(RecordWriter.skip, step, reason, part=part)

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
        whole = {"versions": versions} | header | {"settings": settings}
        return whole if run.attempt == 1 else whole | {"attempt": run.attempt}
