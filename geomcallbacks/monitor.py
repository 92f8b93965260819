"""GeometryMonitor: the one place that composes probe, measurement, schedule and record file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from geomcallbacks.measure import EndingError, LostPassError, check_fit, measure_probe
from geomcallbacks.metrics import DEFAULT_WINDOW
from geomcallbacks.phases import PHASE_NAMES
from geomcallbacks.phases.tracker import PhaseTracker
from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.positions import Positions
from geomcallbacks.reading.calling import ForwardFn
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.locate import Layers, layer_list
from geomcallbacks.record import CONVENTION, GeometryRecord, read_records
from geomcallbacks.running.base import RunMonitor
from geomcallbacks.running.processes import from_first, rank
from geomcallbacks.schedule import Schedule
from geomcallbacks.settings import Settings, about

_LOGGER = logging.getLogger("geomcallbacks")


class GeometryMonitor(RunMonitor):
    """Measures the geometry of a model's hidden states on held-out text, in any training loop.

    Call `step` after every optimiser update; it measures when the schedule says so. With torch.distributed
    initialised, every process must call it.

    Args:
        probe: one ProbeSet, or several by label.
        layers: what is read: -1 (the output of the last layer, after the final norm where the model has one), other
            indices as in Transformers' `hidden_states`, names of submodules, or a list of these.
        positions: "last" token of each row, k evenly spaced positions, "all" but the first, or their "mean".
        alpha_window: ranks (first, last) over which α is fitted, 1-based and inclusive. A model with d < 128 needs a
            window of its own.
        precision: "training" measures under the autocast that is active when `step` is called, "bf16" under autocast
            of its own, "fp32" without any.
        schedule: at which updates to measure.
        module: name of the submodule to read where it is not found, or where there are several language models.
        forward: (model, input_ids, attention_mask) -> anything, for models that are not called with `input_ids`.
        path: the record file; None writes none.
        on_error: "warn" once and go on when a measurement fails, or "raise".
        batch_size: rows of the probe that go through the model together. Part of what a number means in low
            precision, so it is recorded.
        spectra: keep the whole eigenspectrum of each measurement beside the record file.
        intervals: give each metric a 95 % interval by resampling the probe's rows. Costs twenty more spectra.
        tokens_per_update: training tokens of one update, to record how many were seen.
        total_steps: updates of the run, where known: the last is then measured, and spacing follows its length.
        from_scratch: whether the run starts from random weights, so that a first fall of RankMe is warm-up and not
            compression. None: it does if it starts at update 0. Say False where trained weights are trained further.

    Attributes:
        transitions: what the last measurement showed of phases that began, in words.
        allow_change: go on from a checkpoint though it was measured on another probe or by another convention.

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
        precision: str = "training",
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        module: str | None = None,
        forward: ForwardFn | None = None,
        path: str | Path | None = None,
        on_error: str = "warn",
        batch_size: int = 32,
        spectra: bool = True,
        intervals: bool = False,
        tokens_per_update: int | None = None,
        total_steps: int | None = None,
        from_scratch: bool | None = None,
        allow_change: bool = False,
    ) -> None:
        super().__init__(schedule, path, on_error, total_steps)
        self.settings = Settings(layers, positions, alpha_window, precision, module, forward, batch_size, intervals)
        self.probes = _labelled(probe)
        for label, rows in self.probes.items():
            self.settings.check_probe(label, rows)
        self.spectra = spectra
        self.tokens_per_update = tokens_per_update
        self.from_scratch = from_scratch
        self.allow_change = allow_change
        self.transitions: list[str] = []
        self._curves: dict[tuple[str, str], PhaseTracker] = {}

    def start(self, model: nn.Module, *, step: int = 0, total_steps: int | None = None) -> None:
        """Begin a run, or go on with one from its checkpoint. See `RunMonitor.start`."""
        super().start(model, step=step, total_steps=total_steps)
        self._curves = {}
        self._to_file(self._keep_probes)
        if step > 0:
            self._recall(model, step)

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
        return self._if_due(model, step, last, lambda: self.measure(model, step, tokens=tokens)) or []

    def measure(self, model: nn.Module, step: int, *, tokens: int | None = None) -> list[GeometryRecord]:
        """Measure now, whatever the schedule says. See `step`."""
        step = int(step)  # NumPy's whole numbers are none to JSON
        if tokens is None and self.tokens_per_update is not None:
            tokens = step * self.tokens_per_update
        tokens = None if tokens is None else int(tokens)
        records: list[GeometryRecord] = []
        before = self._last_measured
        try:
            self._measure(model, step, tokens, records)
        except EndingError:  # as if it had not been begun
            self._last_measured = before
            return []
        return records

    def _measure(self, model: nn.Module, step: int, tokens: int | None, records: list[GeometryRecord]) -> None:
        with self._measuring(model, step):
            for label, probe in self.probes.items():
                with self._forgiving(step):
                    records += measure_probe(
                        model, label, probe, self.settings, step=step, tokens=tokens, ending=self.ending
                    )
                    self._keep_batch_size(records[-1])
                    self._tell_of_nothing(step, records[-1])
            with self._forgiving(step):
                self._follow(records)
            self._to_file(lambda: self._write_spectra(step, records))
            self._to_file(lambda: self._write_lines(records))

    @contextmanager
    def _forgiving(self, step: int) -> Iterator[None]:
        """What fails inside costs its numbers, not the run; but for what no process can come back from."""
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

    def log_key(self, record: GeometryRecord) -> str:
        """Prefix of a record's keys in a tracker: `geometry` with one probe and one layer, else
        `geometry/<probe>/<layer>`.
        """
        alone = len(self.probes) == 1 and len(layer_list(self.settings.layers)) == 1
        return "geometry" if alone else f"geometry/{record.probe}/{record.layer}"

    def log_row(self, records: list[GeometryRecord]) -> dict[str, float]:
        """What a tracker is to be given: `<log_key>/<metric>`, and `<log_key>/phase` (0 warm-up, 1 entropy-seeking, 2
        compression-seeking). What has no value is left out.
        """
        row: dict[str, float] = {}
        for record in records:
            values = dict(record.metrics)
            if record.phase is not None:
                values["phase"] = PHASE_NAMES.index(record.phase)
            row |= {f"{self.log_key(record)}/{name}": value for name, value in values.items() if value is not None}
        return row

    @property
    def key(self) -> str:
        """Tells several monitors of one run apart in its checkpoints."""
        return f"{self.settings.layers} {sorted(self.probes)}"

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for a checkpoint: those of `RunMonitor.state_dict`, and what is measured how."""
        return super().state_dict() | self._what_and_how()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. See `RunMonitor.load_state_dict`.

        Raises:
            ValueError: the checkpoint's run was measured on other probes or by another convention.
        """
        for name, now in self._what_and_how().items():
            if name in state and state[name] != now and not self.allow_change:
                raise ValueError(
                    f"the run was measured with {name} = {state[name]}, and now has {now}: give it the same, or"
                    " allow_change=True to go on in its record file all the same"
                )
        super().load_state_dict(state)

    def _what_and_how(self) -> dict[str, Any]:
        """What makes numbers comparable along a run, in plain numbers and strings."""
        return {
            "probes": {label: rows.fingerprint for label, rows in self.probes.items()},
            "convention": CONVENTION,
            "positions": self.settings.positions,
            "alpha_window": list(self.settings.alpha_window),
            "precision": self.settings.precision,
        }

    def _check(self, model: nn.Module) -> None:
        """The model's vocabulary, its layers, and d against the window; n < 4d warns."""
        for message in check_fit(model, self.probes, self.settings):
            if rank() == 0:
                self._warn_once(message, message)

    def _keep_batch_size(self, record: GeometryRecord) -> None:
        if record.batch_size < self.settings.batch_size:
            self.settings = replace(self.settings, batch_size=record.batch_size)
            self._warn_once("memory", f"the probe ran out of memory: batch_size is now {record.batch_size}")

    def _tell_of_nothing(self, step: int, record: GeometryRecord) -> None:
        """Say once that a measurement has no value at all, such as of states that are not finite."""
        if rank() == 0 and all(value is None for value in record.metrics.values()):
            reason = record.reasons["rankme"]
            self._warn_once("nothing", f"geometry has no value at step {step}: {reason}; training goes on")

    def _follow(self, records: list[GeometryRecord]) -> None:
        """Give each record its phase, and say which phases have begun."""
        self.transitions = []
        for record in records:
            key = (record.probe, record.layer)
            curve = self._curves.setdefault(key, PhaseTracker(self.from_scratch))
            news = curve.add(record.step, record.metrics["rankme"])
            record.phase = curve.name
            if news is not None:
                self.transitions.append(f"{self.log_key(record)}: {news}")
        if rank() == 0:
            for line in self.transitions:
                _LOGGER.info(line)

    def _recall(self, model: nn.Module, step: int) -> None:
        """Read from the record file what the run has measured up to its checkpoint; rank 0 tells the others."""
        points: list[list[Any]] = []
        if self._writer is not None:
            try:
                rows = read_records(self._writer.path)
                points = [
                    [row["probe"], row["layer"], row["step"], row["rankme"]]
                    for row in rows
                    if row["step"] <= step and self._is_ours(row)
                ]
            except Exception as error:  # another kind of file, or one that somebody has changed
                said = f"{type(error).__name__}: {error}"
                self._warn_once("recall", f"phases start anew: {self._writer.path} could not be read ({said})")
        shared = json.loads(from_first(json.dumps(points), device_of(model)))
        if any(at == step for _, _, at, _ in shared):  # by a checkpoint that was written before
            self._last_measured = step
        curves: dict[tuple[str, str], list[tuple[int, float | None]]] = {}
        for probe, layer, at, value in shared:
            curves.setdefault((probe, layer), []).append((at, value))
        for key, curve in curves.items():
            tracker = PhaseTracker(self.from_scratch)
            try:
                tracker.load(curve)
            except Exception as error:
                self._warn_once("recall", f"phases start anew: {key} is no curve ({type(error).__name__}: {error})")
            else:
                self._curves[key] = tracker

    def _is_ours(self, row: Mapping[str, Any]) -> bool:
        """Whether a record is of the present probe and positions, not of those before an allowed change."""
        probe = self.probes.get(row.get("probe", ""))
        measured = (row.get("fingerprint"), row.get("positions"))
        return probe is not None and measured in ((probe.fingerprint, self.settings.positions), (None, None))

    def _keep_probes(self) -> None:
        """Save the probes beside the record file: `geomcallbacks trace` measures the run's checkpoints on them."""
        if self._writer is None:
            return
        folder = self._writer.probes_folder
        folder.mkdir(exist_ok=True)
        for probe in self.probes.values():
            file = folder / f"{probe.fingerprint}.safetensors"
            if not file.is_file():
                scratch = file.with_suffix(f".{os.getpid()}.tmp")
                probe.save(scratch)
                scratch.replace(file)

    def _write_spectra(self, step: int, records: list[GeometryRecord]) -> None:
        kept = {f"{r.probe}/{r.layer}": r.eigenvalues for r in records if r.eigenvalues is not None}
        if self._writer is None or not self.spectra or not kept:
            return
        file = self._writer.write_spectra(step, kept)
        for record in records:
            key = f"{record.probe}/{record.layer}"
            record.spectrum = (file, key) if key in kept else None

    def _write_lines(self, records: list[GeometryRecord]) -> None:
        if self._writer is not None:
            for record in records:
                self._writer.write(record)

    def _about(self) -> dict[str, Any]:
        said = about(self.settings, self.probes)
        said["settings"]["from_scratch"] = self.from_scratch
        return said


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
