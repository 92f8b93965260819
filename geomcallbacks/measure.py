"""One measurement: a model and a probe in, a GeometryRecord for each layer out.

All ranks of a run take part and end with the same numbers or the same failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from geomcallbacks.probe import ProbeSet, deal
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader
from geomcallbacks.reading.rounding import dtype_name, eps_of, noting_dtypes, roundings
from geomcallbacks.reading.sharding import release
from geomcallbacks.record import GeometryRecord
from geomcallbacks.running.processes import alive, rank, release_frames, worst
from geomcallbacks.settings import ReadingSettings
from geomcallbacks.spectra.moments import Gathered, Layer
from geomcallbacks.spectra.summary import numbers_of

Ending = Callable[[], bool]

_OK, _OUT_OF_MEMORY, _CROWDED, _FAILED, _ENDING = range(5)  # the worst of all ranks counts

_LOST = (
    "the probe failed on process {} inside the forward pass of a sharded model ({}: {}). The other processes wait for"
    " this one in the same pass, until their group's time-out, so that the run ends here: go on from its last"
    " checkpoint with a smaller batch_size (now {}) where memory ran out, or without the callback"
)
_ELSEWHERE = "another process failed to measure: its own message says why"


class LostPassError(RuntimeError):
    """A rank failed inside a forward pass that others wait in, and none can go on. Raised whatever `on_error` says."""

    ends_run = True

    def __init__(self, error: Exception, batch_size: int) -> None:
        super().__init__(_LOST.format(rank(), type(error).__name__, error, batch_size))


class EndingError(Exception):
    """The process has been told to end, and the pass over the probe is given up."""


class _CrowdedError(Exception):
    """What is gathered of several layers does not fit into memory together: smaller batches would not help."""


@dataclass(frozen=True)
class _Pass:
    """One pass over a probe on this rank: what it gathered, or how it ended."""

    batch_size: int
    status: int = _OK
    layers: Mapping[str, Layer] = field(default_factory=dict)
    precision: str = ""
    notes: list[str] = field(default_factory=list)
    error: Exception | None = None


def measure_probe(
    reader: Reader,
    label: str,
    probe: ProbeSet,
    settings: ReadingSettings,
    *,
    step: int,
    tokens: int | None = None,
    ending: Ending | None = None,
) -> list[GeometryRecord]:
    """Measure the geometry of a model on one probe.

    Args:
        reader: what reads the model. The model's modes, gradients and random states are left as they are.
        label: name of the probe.
        probe: the rows.
        settings: how they are read. Where memory runs out, with half the `batch_size`, or half the layers in a pass;
            records say so.
        step: optimiser updates that the weights have received.
        tokens: training tokens seen.
        ending: asked between batches whether the process has been told to end.

    Returns:
        A record for each layer.

    Raises:
        EndingError: a process has been told to end.
        LostPassError: this process failed inside the forward pass of a sharded model.
    """
    points, records = reader.points, list[GeometryRecord]()
    at_once = reader.at_once or len(points) or 1  # fewer than all, once memory has run out
    with alive():
        for start in range(0, len(points) or 1, at_once):
            part = reader
            if at_once < len(points):
                part = copy(reader)
                part.points = points[start : start + at_once]
            try:
                records += _measure_layers(part, label, probe, settings, step, tokens, ending)
            except _CrowdedError:
                break
            if records[-1].batch_size < settings.batch_size:
                settings = replace(settings, batch_size=records[-1].batch_size)
        else:
            turns = f"layers read in turn, {at_once} in a pass: their moments do not fit into memory together"
            return [replace(one, notes=[*one.notes, turns]) for one in records] if at_once < len(points) else records
    reader.at_once = at_once // 2
    return measure_probe(reader, label, probe, settings, step=step, tokens=tokens, ending=ending)


def _measure_layers(
    reader: Reader,
    label: str,
    probe: ProbeSet,
    settings: ReadingSettings,
    step: int,
    tokens: int | None,
    ending: Ending | None,
) -> list[GeometryRecord]:
    """Measure the layers of a reader in one pass over the probe; see `measure_probe`."""
    begin = time.perf_counter()
    device, n = device_of(reader.called), settings.features(probe)
    done = _read_probe(reader, probe, settings, device, ending)
    bad = torch.stack([layer.bad.to(device) for layer in done.layers.values()])
    for group in reader.spread.groups:
        dist.all_reduce(bad, group=group)
    bad_rows = bad.tolist()  # waits for the forward pass
    middle = time.perf_counter()
    with _together(device, crowded=len(done.layers) > 1):
        stores = [layer.store for layer in done.layers.values()]
        numbers = numbers_of(stores, bad_rows, n=n, window=settings.alpha_window, intervals=settings.intervals)
    spectrum_seconds = (time.perf_counter() - middle) / len(numbers)
    return [
        GeometryRecord(
            step=step,
            tokens=tokens,
            probe=label,
            fingerprint=probe.fingerprint,
            layer=name,
            module=layer.module,
            positions=settings.positions,
            n=n,
            d=layer.store.d,
            metrics=found.metrics,
            reasons=found.reasons,
            alpha_window=settings.alpha_window,
            precision=done.precision,
            batch_size=done.batch_size,
            seconds_forward=middle - begin,
            seconds_spectrum=spectrum_seconds,
            intervals=found.intervals,
            notes=done.notes,
            eigenvalues=found.eigenvalues,
        )
        for (name, layer), found in zip(done.layers.items(), numbers, strict=True)
    ]


def _read_probe(
    reader: Reader, probe: ProbeSet, settings: ReadingSettings, device: torch.device, ending: Ending | None
) -> _Pass:
    """Read the whole probe, in smaller batches where memory runs out; all ranks act alike."""
    notes: list[str] = []
    while True:
        size, done = settings.batch_size, _attempt(reader, probe, settings, device, ending)
        if done.error is not None:
            release_frames(done.error)  # they hold what has filled the memory
        status = worst(done.status, device)
        if status == _OK:
            break
        if status == _ENDING:
            raise EndingError
        if len(reader.points) > 1 and (status == _CROWDED or (status == _OUT_OF_MEMORY and size == 1)):
            raise _CrowdedError
        if status in (_FAILED, _CROWDED) or size == 1:
            raise done.error or RuntimeError(_ELSEWHERE)
        del done
        settings = replace(settings, batch_size=settings.batch_size // 2)
        notes.append(f"out of memory: batch_size halved to {settings.batch_size}")
    for layer in done.layers.values() if reader.spread.groups else ():
        layer.store.all_reduce(reader.spread.groups)
    return replace(done, notes=notes)


def _attempt(
    reader: Reader, probe: ProbeSet, settings: ReadingSettings, device: torch.device, ending: Ending | None
) -> _Pass:
    """Read this rank's share of the probe once."""
    size = settings.batch_size
    try:
        with untouched(reader, settings, device), noting_dtypes([p.module for p in reader.points], device) as seen:
            precision = _precision(reader, device)
            gathered = _gather(reader, probe, settings, ending)
            eps = eps_of(reader.called, device, (reader.spread.dtype, *seen))
        for name, layer in gathered.layers.items():
            layer.store.eps = max(layer.store.eps, eps * roundings(reader.called, name) ** 0.5)
        if reader.spread.groups:
            gathered.prepare(settings.counts(probe))
        if gathered.crowded is not None:
            return _Pass(size, _CROWDED, error=gathered.crowded)
    except EndingError:
        return _Pass(size, _ENDING)
    except Exception as error:
        if reader.spread.sharded:
            raise LostPassError(error, size) from error
        return _Pass(size, _OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else _FAILED, error=error)
    return _Pass(size, layers=gathered.layers, precision=precision)


def _gather(reader: Reader, probe: ProbeSet, settings: ReadingSettings, ending: Ending | None) -> Gathered:
    gathered = Gathered(settings.features(probe), settings.intervals)
    for batch, counted in deal(probe.batches(settings.batch_size), reader.spread.index, reader.spread.count):
        if not reader.spread.sharded:  # among shards others wait in the same batch
            if ending is not None and ending():
                raise EndingError
            if gathered.crowded is not None:
                break
        features, origin = reader.read(batch, settings.positions)
        kept = slice(None) if counted else slice(0)
        gathered.add({point.label: (point.name, features[point.label][kept]) for point in reader.points}, origin[kept])
    return gathered


@contextmanager
def untouched(reader: Reader, settings: ReadingSettings, device: torch.device) -> Iterator[None]:
    """Run forward passes inside under the settings' autocast, and leave no trace on the model."""
    own = reader.arithmetic if settings.precision == "training" and not torch.is_autocast_enabled(device.type) else None
    try:
        with leave_no_trace(reader.whole), own() if own else nullcontext(), settings.autocast(device):
            yield
    finally:
        if reader.spread.sharded:
            release(reader.whole)


@contextmanager
def _together(device: torch.device, crowded: bool) -> Iterator[None]:
    """Raise on all ranks what fails inside on one; where memory runs out and it is `crowded`, a `_CrowdedError`."""
    error: Exception | None = None
    status = _OK
    try:
        yield
    except Exception as caught:
        fits = not (crowded and isinstance(caught, torch.OutOfMemoryError))
        error, status = (caught, _FAILED) if fits else (None, _CROWDED)
        release_frames(caught)
    status = worst(status, device)
    if status == _CROWDED:
        raise _CrowdedError
    if status != _OK:
        raise error or RuntimeError(_ELSEWHERE)


def _precision(reader: Reader, device: torch.device) -> str:
    """Name the dtype in which the model computes."""
    if torch.is_autocast_enabled(device.type):
        return dtype_name(torch.get_autocast_dtype(device.type))
    own = (p.dtype for p in reader.called.parameters() if p.is_floating_point())
    return dtype_name(reader.spread.dtype or next(own, torch.float32))
