"""BehaviourMonitor: composes measures of behaviour, schedule and record file, as GeometryMonitor does for geometry."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from geomcallbacks.adapters.callback import Monitored
from geomcallbacks.adapters.tracker import Row
from geomcallbacks.behaviour.dealing import Measure, measure_together
from geomcallbacks.reading.locate import refuse_sharded, refuse_unsupported, unwrap
from geomcallbacks.running.messages import OnError
from geomcallbacks.running.processes import alive, rank
from geomcallbacks.running.record_writer import RecordWriter
from geomcallbacks.running.run_monitor import Due, RunMonitor
from geomcallbacks.schedule import Schedule


class BehaviourMonitor(RunMonitor):
    """Measure what a model does, in any training loop: call `step` after every optimiser update.

    In a run of several ranks, which must all hold the whole model and all call it, each takes its share of the measures
    of this package; a function of your own is called on the first alone. All are given the same numbers.

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
        on_error: OnError = "warn",
        total_steps: int | None = None,
    ) -> None:
        _check_names(measures)
        super().__init__(schedule, path, on_error, total_steps)
        self.measures = dict(measures)

    @property
    def key(self) -> str:
        """Tell several monitors of one run apart in its checkpoints."""
        return f"behaviour {sorted(self.measures)}"

    @property
    def prefixes(self) -> list[str]:
        """The keys under which its numbers are logged, without what a measure calls them."""
        return [f"behaviour/{name}" for name in self.measures]

    def step(
        self, model: nn.Module, step: int, *, tokens: int | None = None, last: bool = False
    ) -> dict[str, float | None]:
        """Measure if it is due after `step` updates, and not yet done.

        Args:
            model: the model as the loop holds it.
            step: optimiser updates that its weights have received.
            tokens: training tokens seen so far, where known; recorded.
            last: no update follows, so that it is due in any case.

        Returns:
            `<name>/<key>` of each number, None where it is not finite; empty when nothing was due or all failed.
        """
        kind = self.due(model, step, last=last)
        return self.measure(model, step, tokens=tokens, kind=kind) if kind else {}

    def measure(
        self, model: nn.Module, step: int, *, tokens: int | None = None, kind: Due = "fixed"
    ) -> dict[str, float | None]:
        """Measure now, whatever the schedule says. `kind` is what `due` answered; see `step`."""
        with self._measuring(model, step, kind) as run:
            begin = time.perf_counter()
            with alive():
                found, reasons, errors = measure_together(self.measures, model)
            for name, reason in reasons.items():
                if self.on_error == "raise":
                    raise errors.get(name) or RuntimeError(f"another process failed to measure {name!r} ({reason})")
                told = f"{name!r} was not measured at step {step}" if rank() == 0 else ""
                self._fail(run, step, name, reason, told)
            line = {"step": step, "seconds": time.perf_counter() - begin, **found}
            if found:
                run.file.keep(RecordWriter.write, line if tokens is None else line | {"tokens": tokens})
        return found

    def _prepare(self, model: nn.Module) -> None:
        check_measures(self.measures, model)

    def _header(self) -> dict[str, Any]:
        return measures_header(self.measures)


def check_measures(measures: Mapping[str, Measure], model: nn.Module) -> None:
    """Raise ``ValueError`` where the model is sharded or unsupported, or does not fit one of the measures."""
    refuse_sharded(unwrap(model))
    refuse_unsupported(unwrap(model))
    for measure in measures.values():
        check = getattr(measure, "check", None)
        if check is not None:
            check(unwrap(model))


def measures_header(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Return what a record file's header says of the measures."""
    return {
        "measures": {
            name: {"kind": type(measure).__name__, "fingerprint": getattr(measure, "fingerprint", None)}
            for name, measure in measures.items()
        }
    }


def behaviour_row(monitor: BehaviourMonitor, found: Mapping[str, float | None]) -> Row:
    """Give each number its key, `behaviour/<name>/<key>`; each measure has a line of the terminal."""
    values = {f"behaviour/{key}": value for key, value in found.items() if value is not None}
    names = [f"behaviour/{name}/" for name in monitor.measures]
    lines = [{key: value for key, value in values.items() if key.startswith(name)} for name in names]
    values |= {f"behaviour/{name}/failed": 1.0 for name in monitor.failed}
    missing = [f"behaviour/{key}" for key, value in found.items() if value is None]
    return Row(values, missing, [line for line in lines if line])


class BehaviourArguments(Monitored):
    """The constructor of both BehaviourCallbacks."""

    monitor: BehaviourMonitor

    def __init__(
        self,
        measures: Mapping[str, Measure],
        *,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        path: str | Path | None = None,
        on_error: OnError = "warn",
        total_steps: int | None = None,
    ) -> None:
        monitor = BehaviourMonitor(measures, schedule=schedule, path=path, on_error=on_error, total_steps=total_steps)
        super().__init__(monitor, behaviour_row, "behaviour.jsonl")


def _check_names(measures: Any) -> None:
    if not isinstance(measures, Mapping):
        raise TypeError(f"measures is a {type(measures).__name__}: give them by name, such as {{'loss': measure}}")
    if not measures:
        raise ValueError("measures={} measures nothing: give at least one, by name")
    for name, measure in measures.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"measures has the name {name!r}: give a word without '/'")
        if not callable(measure):
            raise TypeError(f"measure {name!r} is a {type(measure).__name__}: give a function of the model")
