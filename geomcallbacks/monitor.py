"""GeometryMonitor: the one place that composes probe, measurement, schedule and record file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from geomcallbacks.measure import EndingError, LostPassError, measure_probe, prepare
from geomcallbacks.phases import PHASE_NAMES, PhaseTracker
from geomcallbacks.probe import ProbeSet
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.reader import Reader
from geomcallbacks.record import CONVENTION, GeometryRecord, read_records
from geomcallbacks.running.processes import first_decides, first_numbers, rank
from geomcallbacks.running.record_writer import record_lines
from geomcallbacks.running.run_monitor import Due, Run, RunMonitor
from geomcallbacks.schedule import Schedule
from geomcallbacks.settings import DEFAULT_WINDOW, ForwardFn, Layers, OnError, Positions, Precision, Settings

_LOGGER = logging.getLogger("geomcallbacks")


class GeometryMonitor(RunMonitor):
    """Measure the geometry of a model's hidden states on held-out text, in any training loop.

    Call `step` after every optimiser update; it measures when the schedule says so. With torch.distributed
    initialised, every rank must call it.

    Args:
        probe: one ProbeSet, or several by label.
        layers, positions, …: see `geomcallbacks.settings.Settings`, or the README's table.

    Raises:
        ValueError: an argument is wrong by itself. What needs the model is raised by `start`.
    """

    def __init__(
        self,
        probe: ProbeSet | Mapping[str, ProbeSet],
        *,
        layers: Layers = -1,
        positions: Positions = "last",
        alpha_window: tuple[int, int] = DEFAULT_WINDOW,
        precision: Precision = "training",
        module: str | None = None,
        forward: ForwardFn | None = None,
        batch_size: int = 32,
        intervals: bool = False,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        path: str | Path | None = None,
        on_error: OnError = "warn",
        spectra: bool = True,
        tokens_per_update: int | None = None,
        total_steps: int | None = None,
        from_scratch: bool | None = None,
        allow_change: bool = False,
    ) -> None:
        self.settings = Settings(**Settings.among(locals()))
        super().__init__(schedule, path, on_error, total_steps)
        self.probes = _labelled(probe)
        for label, rows in self.probes.items():
            self.settings.check_probe(label, rows)
        self._read_model: tuple[nn.Module, Reader] | None = None
        self._curves: dict[str, PhaseTracker] = {}

    @property
    def key(self) -> str:
        """Tell several monitors of one run apart in its checkpoints."""
        return f"{self.settings.layers} {sorted(self.probes)}"

    def step(
        self, model: nn.Module, step: int, *, tokens: int | None = None, last: bool = False
    ) -> list[GeometryRecord]:
        """Measure if it is due after `step` updates, and not yet done.

        Args:
            model: the model as the loop holds it.
            step: optimiser updates that its weights have received.
            tokens: training tokens seen so far, where known.
            last: no update follows, so that it is due in any case.

        Returns:
            One record for each (probe, layer), or none when nothing was due or the measurement failed.
        """
        kind = self.due(model, step, last=last)
        return self.measure(model, step, tokens=tokens, kind=kind) if kind else []

    def measure(
        self, model: nn.Module, step: int, *, tokens: int | None = None, kind: Due = "fixed"
    ) -> list[GeometryRecord]:
        """Measure now, whatever the schedule says. `kind` is what `due` answered; see `step`."""
        step = int(step)  # NumPy's whole numbers are none to JSON
        if tokens is None and self.settings.tokens_per_update is not None:
            tokens = step * self.settings.tokens_per_update
        tokens = None if tokens is None else int(tokens)
        before = self._run_of(model).settled
        records: list[GeometryRecord] = []
        with self._measuring(model, step, kind) as run:
            for label, probe in self.probes.items():
                try:
                    with self._surviving(step):
                        records += self._measure_probe(run, model, label, probe, step, tokens)
                except EndingError:  # as if it had not been begun
                    run.settled = before
                    return []
            records = self._with_phases(records, step, model)
            self._write(run, records, step)
        return records

    def close(self) -> None:
        """Close the record file, and let go of the model. Closing twice is harmless."""
        super().close()
        self._read_model = None

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings for a checkpoint: those of `RunMonitor.state_dict`, and the conventions."""
        return super().state_dict() | self._conventions()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. See `RunMonitor.load_state_dict`.

        Raises:
            ValueError: the checkpoint's run was measured on other probes or by another convention.
        """
        for name, now in self._conventions().items():
            if name in state and state[name] != now and not self.settings.allow_change:
                raise ValueError(
                    f"the run was measured with {name} = {state[name]}, and now has {now}: give it the same, or"
                    " allow_change=True to go on in its record file all the same"
                )
        super().load_state_dict(state)

    def _conventions(self) -> dict[str, Any]:
        """Return what makes numbers comparable along a run, in plain numbers and strings."""
        return {
            "probes": {label: rows.fingerprint for label, rows in self.probes.items()},
            "convention": CONVENTION,
            "positions": self.settings.positions,
            "alpha_window": list(self.settings.alpha_window),
            "precision": self.settings.precision,
        }

    def _prepare(self, model: nn.Module) -> None:
        """Check the model's vocabulary, its layers, and d against the window; n < 4d warns."""
        reader, warnings = prepare(model, self.probes, self.settings)
        self._read_model = (model, reader)
        for message in warnings if rank() == 0 else ():
            self._warn_once(message, message)

    def _begin(self, run: Run, model: nn.Module, step: int) -> None:
        """Keep the probes, and go on with the phases of a resumed run."""
        self._curves = {}
        if run.writer is not None:
            with self._keep_going():
                run.writer.keep_probes(self.probes.values())
        if step > 0:
            self._restore_phases(run, model, step)

    def _header(self) -> dict[str, Any]:
        return {
            "settings": self.settings.header() | {"from_scratch": self.settings.from_scratch},
            "probes": {label: {"fingerprint": p.fingerprint, "rows": len(p)} for label, p in self.probes.items()},
        }

    def _measure_probe(
        self, run: Run, model: nn.Module, label: str, probe: ProbeSet, step: int, tokens: int | None
    ) -> list[GeometryRecord]:
        if self._read_model is None or self._read_model[0] is not model:  # another model, such as an average of weights
            self._read_model = (model, self.settings.reader(model))
        reader = self._read_model[1]
        records = measure_probe(reader, label, probe, self.settings, step=step, tokens=tokens, ending=run.ending)
        if (size := records[-1].batch_size) < self.settings.batch_size:
            self.settings = replace(self.settings, batch_size=size)
            self._warn_once("memory", f"the probe ran out of memory: batch_size is now {size}")
        if rank() == 0 and all(value is None for value in records[-1].metrics.values()):
            reason = records[-1].reasons["rankme"]
            self._warn_once("empty", f"geometry has no value at step {step}: {reason}; training goes on")
        return records

    @contextmanager
    def _surviving(self, step: int) -> Iterator[None]:
        """Warn of a failure inside and go on, unless no rank can recover from it."""
        try:
            yield
        except (EndingError, LostPassError):
            raise
        except Exception as error:
            if self.on_error == "raise":
                raise
            kind = type(error).__name__
            # Once for each kind: messages carry sizes and addresses, and would differ at every measurement.
            self._warn_once(kind, f"geometry was not measured at step {step} ({kind}: {error}); training goes on")

    def _with_phases(self, records: list[GeometryRecord], step: int, model: nn.Module) -> list[GeometryRecord]:
        """Give each record the phase that its curve is in: the first rank finds it, and tells the others."""
        news: list[str | None] = [None] * len(records)
        numbers = [-1] * len(records)
        failed: Exception | None = None
        if rank() == 0:
            try:
                for index, record in enumerate(records):
                    curve = self._curves.setdefault(record.curve, PhaseTracker(self.settings.from_scratch))
                    change = curve.add(step, record.metrics["rankme"])
                    news[index] = None if change is None else str(change)
                    numbers[index] = -1 if curve.name is None else PHASE_NAMES.index(curve.name)
            except Exception as error:
                failed = error
        shared = first_numbers(numbers, device_of(model))
        with self._surviving(step):
            if failed is not None:
                raise failed
        for record, line in zip(records, news, strict=True):
            if line is not None:
                _LOGGER.info("%s: %s", record.curve, line)
        return [
            replace(record, phase=PHASE_NAMES[number] if number >= 0 else None, news=line)
            for record, number, line in zip(records, shared, news, strict=True)
        ]

    def _restore_phases(self, run: Run, model: nn.Module, step: int) -> None:
        """Read from the record file what the run has measured up to its checkpoint."""
        rows: Sequence[Mapping[str, Any]] = []
        if run.writer is not None:
            try:
                rows = [row for row in read_records(run.writer.path) if row["step"] <= step and self._is_ours(row)]
                curves: dict[str, list[tuple[int, float | None]]] = {}
                for row in rows:
                    curves.setdefault(f"{row['probe']}/{row['layer']}", []).append((row["step"], row["rankme"]))
                for key, points in curves.items():
                    self._curves[key] = PhaseTracker(self.settings.from_scratch)
                    self._curves[key].load(points)
            except Exception as error:  # another kind of file, or one that somebody has changed
                reason = f"{type(error).__name__}: {error}"
                self._warn_once("phases", f"phases start anew: {run.writer.path} could not be read ({reason})")
                self._curves = {}
        # A checkpoint that was written before the measurement of its update does not know of it.
        if first_decides(any(row["step"] == step for row in rows), device_of(model)):
            run.settled = step

    def _is_ours(self, row: Mapping[str, Any]) -> bool:
        """Whether a record is of the present probe and positions, not of those before an allowed change."""
        probe = self.probes.get(row.get("probe", ""))
        measured = (row.get("fingerprint"), row.get("positions"))
        return probe is not None and measured in ((probe.fingerprint, self.settings.positions), (None, None))

    def _write(self, run: Run, records: list[GeometryRecord], step: int) -> None:
        if run.writer is None or not records:
            return
        kept = None
        if self.settings.spectra:
            with self._keep_going():
                kept = run.writer.keep_spectra(step, records)
        with self._keep_going():
            run.writer.write(*record_lines(records, kept))


def _labelled(probe: ProbeSet | Mapping[str, ProbeSet]) -> dict[str, ProbeSet]:
    probes = dict(probe) if isinstance(probe, Mapping) else {"probe": probe}
    if not probes:
        raise ValueError("probe={} measures nothing: give a ProbeSet, or several by label")
    for label, rows in probes.items():
        if not isinstance(rows, ProbeSet):
            raise ValueError(
                f"probe {label!r} is a {type(rows).__name__}, not a ProbeSet: build one with ProbeSet.from_texts"
            )
    return probes
