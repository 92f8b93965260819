"""GeometryMonitor: the one place that composes probe, measurement, schedule and record file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomcallbacks.measure import EndingError, LostPassError, measure_probe
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.phases import PHASE_NAMES
from geomcallbacks.phases.curves import Curves
from geomcallbacks.prepare import prepare
from geomcallbacks.probe import ProbeSet
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.locate import layer_list
from geomcallbacks.reading.reader import Reader
from geomcallbacks.reading.weights import TRAINING, average_around, storage_of
from geomcallbacks.record import CONVENTION, GeometryRecord, read_records
from geomcallbacks.running.messages import reason_of
from geomcallbacks.running.processes import first_decides, first_numbers, rank
from geomcallbacks.running.record_writer import RecordWriter, record_lines
from geomcallbacks.running.run import Run
from geomcallbacks.running.run_monitor import Due, RunMonitor
from geomcallbacks.schedule import Schedule
from geomcallbacks.settings import (
    DEFAULT_WINDOW,
    ForwardFn,
    Layers,
    OnError,
    Positions,
    Precision,
    Settings,
    labelled,
)

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
        self.probes, self._is_labelled = labelled(probe), isinstance(probe, Mapping)
        for label, rows in self.probes.items():
            self.settings.check_probe(label, rows)
        self._read_model: tuple[nn.Module, Reader] | None = None
        self._curves = Curves(self.settings.from_scratch)

    @property
    def key(self) -> str:
        """Tell several monitors of one run apart in its checkpoints."""
        return f"{self.settings.layers} {sorted(self.probes)}"

    names = (*METRIC_NAMES, "phase")

    @property
    def prefixes(self) -> list[str]:
        """The keys under which its numbers are logged, without the metric."""
        return [key for label in self.probes for key in self.prefixes_of(label)]

    def prefixes_of(self, label: str) -> list[str]:
        """Return those of one probe."""
        points = self._read_model[1].points if self._read_model is not None else []
        labels = [point.label for point in points] or [_label(layer) for layer in layer_list(self.settings.layers)]
        return [self.key_of(label, layer) for layer in labels]

    def key_of(self, label: str, layer: str | None = None) -> str:
        """Return `geometry[/<label>][/<layer>]`: the label where the user gave one, the layer where it is not the last.

        So a second probe or layer adds keys, and renames none.
        """
        points = self._read_model[1].points if self._read_model is not None else []
        last = {_label(-1), *(point.label for point in points if point.last)}
        named = [label] if self._is_labelled else []
        return "/".join(["geometry", *named, *([layer] if layer is not None and layer not in last else [])])

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
        before = self._run_of(model, step).settled
        records: list[GeometryRecord] = []
        with self._measuring(model, step, kind) as run:
            for label, probe in self.probes.items():
                try:
                    records += self._measure_probe(run, model, label, probe, step, tokens)
                except EndingError:  # as if it had not been begun
                    run.settled = before
                    return []
                except LostPassError:  # no rank can recover from it
                    raise
                except Exception as error:
                    if self.on_error == "raise":
                        raise
                    reason = reason_of(error)
                    self._fail(run, step, label, reason, f"geometry was not measured at step {step}")
            records = self._with_phases(records, step, model)
            self._write(run, records, step)
        return records

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model behind too. See `RunMonitor.__getstate__`."""
        return super().__getstate__() | {"_read_model": None}

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
        self._curves = Curves(self.settings.from_scratch)
        run.file.keep(RecordWriter.keep_probes, self.probes.values())
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
        active, more = torch.is_autocast_enabled(device_of(model).type), []
        if self.settings.precision == "training" and not (run.driven or active or reader.arithmetic):
            more = [f"the precision of training is not known: measured in that of the weights, {records[0].precision}"]
        held = average_around(model, reader.called) or (TRAINING if run.weights is None else run.weights())
        storage = storage_of(reader.called)
        records = [replace(one, weights=held, storage=storage, notes=[*one.notes, *more]) for one in records]
        if (size := records[-1].batch_size) < self.settings.batch_size:
            self.settings = replace(self.settings, batch_size=size)
            self._warn_once("memory", f"the probe ran out of memory: batch_size is now {size}")
        if all(value is None for value in records[-1].metrics.values()):
            self.failed[label] = reason = records[-1].reasons["rankme"]
            if rank() == 0:
                self._warn_once("empty", f"geometry has no value at step {step}: {reason}; training goes on")
        return records

    def _with_phases(self, records: list[GeometryRecord], step: int, model: nn.Module) -> list[GeometryRecord]:
        """Give each record the phase that its curve is in: the first rank finds it, and tells the others."""
        news: list[str | None] = [None] * len(records)
        numbers = [-1] * len(records)
        failed: Exception | None = None
        if rank() == 0:
            try:
                for index, record in enumerate(records):
                    name, news[index] = self._curves.add(record.curve, step, record.metrics["rankme"])
                    numbers[index] = -1 if name is None else PHASE_NAMES.index(name)
            except Exception as error:
                failed = error
        shared = first_numbers(numbers, device_of(model))
        if failed is not None:
            if self.on_error == "raise":
                raise failed
            text = f"the phase at step {step} could not be found ({reason_of(failed)}); training goes on"
            self._warn_once(f"phase {type(failed).__name__}", text)
        for record, line in zip(records, news, strict=True):
            if line is not None:
                with suppress(Exception):  # a handler of the user's
                    _LOGGER.info("%s: %s", record.curve, line)
        return [
            replace(record, phase=PHASE_NAMES[number] if number >= 0 else None, news=line)
            for record, number, line in zip(records, shared, news, strict=True)
        ]

    def _restore_phases(self, run: Run, model: nn.Module, step: int) -> None:
        """Read from the record file what the run has measured up to its checkpoint."""
        rows: Sequence[Mapping[str, Any]] = []
        if run.file.past is not None:
            try:
                rows = [row for row in read_records(run.file.past) if row["step"] <= step and self._is_ours(row)]
                self._curves.load(rows)
            except Exception as error:  # another kind of file, or one that somebody has changed
                self._warn_once("phases", f"phases start anew: {run.file.past} could not be read ({reason_of(error)})")
                self._curves = Curves(self.settings.from_scratch)
        # A checkpoint that was written before the measurement of its update does not know of it.
        if first_decides(any(row["step"] == step for row in rows), device_of(model)):
            run.settled = step

    def _is_ours(self, row: Mapping[str, Any]) -> bool:
        """Whether a record is of the present probe and positions, not of those before an allowed change."""
        probe = self.probes.get(row.get("probe", ""))
        measured = (row.get("fingerprint"), row.get("positions"))
        return probe is not None and measured in ((probe.fingerprint, self.settings.positions), (None, None))

    def _write(self, run: Run, records: list[GeometryRecord], step: int) -> None:
        if records:
            kept = run.file.keep(RecordWriter.keep_spectra, step, records) if self.settings.spectra else None
            run.file.keep(RecordWriter.write, *record_lines(records, kept))


def _label(layer: int | str) -> str:
    """Return what a layer is called as long as no model is known."""
    return layer if isinstance(layer, str) else f"layer{layer}"
