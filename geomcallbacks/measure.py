"""One measurement: a model and a probe in, a GeometryRecord for each layer out.

All processes of a run take part and end with the same numbers or the same failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.batches import deal
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader
from geomcallbacks.reading.sharding import release
from geomcallbacks.record import GeometryRecord
from geomcallbacks.running.processes import rank, worst
from geomcallbacks.settings import Settings
from geomcallbacks.spectra.jackknife import jackknife
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import spectrum_of
from geomcallbacks.spectra.summary import explain, no_values, summarise

_OK, _OUT_OF_MEMORY, _FAILED, _ENDING = range(4)
_SUMMARY = len(METRIC_NAMES) + 1  # numbers of `summarise`
_DTYPE_NAMES: dict[Any, str] = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


class LostPassError(RuntimeError):
    """A process failed inside a forward pass that others take part in: they wait for it there, and no process can go
    on. Raised whatever `on_error` says.
    """


_LOST = (
    "the probe failed on process {} inside the forward pass of a sharded model ({}: {}). The other processes wait for"
    " this one in the same pass, until their group's time-out, so that the run ends here: go on from its last"
    " checkpoint with a smaller batch_size (now {}) where memory ran out, or without the callback"
)
_ELSEWHERE = "another process failed to measure: its own message says why"


class EndingError(Exception):
    """The process has been told to end, and the pass over the probe is given up."""


@dataclass
class _Gathered:
    """What one pass over a probe has gathered of one layer."""

    store: Moments | Rows
    bad: Tensor  # rows with a non-finite value, 0-d on the device
    module: str


def check_fit(model: nn.Module, probes: dict[str, ProbeSet], settings: Settings) -> list[str]:
    """Try the model on one short row of each probe, before training.

    Returns:
        Warnings, for n < 4d.

    Raises:
        ValueError: the model's vocabulary, its layers or its d do not fit probe and settings.
    """
    reader = settings.reader(model)
    if settings.precision == "fp32" and reader.spread.dtype not in (None, torch.float32):
        raise ValueError(
            f"precision='fp32', and the policy of the sharded model computes in {_dtype_name(reader.spread.dtype)}:"
            " give precision='training', or shard the model with another MixedPrecisionPolicy"
        )
    warnings = []
    for label, probe in probes.items():
        if reader.vocabulary is not None and probe.max_token_id >= reader.vocabulary:
            raise ValueError(
                f"probe {label!r} holds token id {probe.max_token_id}, and the model's vocabulary ends at"
                f" {reader.vocabulary - 1}: build the probe with the model's own tokenizer"
            )
        longest = int(probe.lengths_n.max())
        if reader.longest is not None and longest > reader.longest:  # on CUDA, reading past it ends the process
            raise ValueError(
                f"probe {label!r} has a row of {longest} tokens, and the model has {reader.longest} positions: build"
                f" the probe with max_length={reader.longest}"
            )
        for d in _widths(reader, probe, settings):
            settings.check_probe(label, probe, d)
            n = settings.features(probe)
            if n < 4 * d:
                warnings.append(
                    f"probe {label!r} gives n = {n} features of d = {d}: below 4 d = {4 * d}, RankMe and its relatives"
                    " are biased downward, so compare only runs with the same n"
                )
    return warnings


def _widths(reader: Reader, probe: ProbeSet, settings: Settings) -> list[int]:
    """D of each layer, from the shortest row of the probe."""
    shortest = probe.batch(probe.lengths_n.argmin(0, keepdim=True))
    with _one_pass(reader, settings, device_of(reader.called)):
        features, _ = reader.read(shortest, settings.positions)
    return [feature_md.shape[1] for feature_md in features.values()]


def measure_probe(
    model: nn.Module,
    label: str,
    probe: ProbeSet,
    settings: Settings,
    *,
    step: int,
    tokens: int | None = None,
    ending: Callable[[], bool] | None = None,
) -> list[GeometryRecord]:
    """The geometry of `model` on one probe.

    Args:
        model: as the training loop holds it. Its modes, gradients and random states are left as they are.
        label: name of the probe.
        probe: the rows.
        settings: how they are read. Where memory runs out, with half the `batch_size`; records say so.
        step: optimiser updates that the weights have received.
        tokens: training tokens seen.
        ending: asked between batches whether the process has been told to end.

    Returns:
        A record for each layer.

    Raises:
        EndingError: a process has been told to end.
        LostPassError: this process failed inside the forward pass of a sharded model.
    """
    begin = time.perf_counter()
    reader = settings.reader(model)
    device = device_of(reader.called)
    layers, settings, notes, precision = _gather(reader, probe, settings, device, ending)
    bad = torch.stack([layer.bad.to(device) for layer in layers.values()])
    for group in reader.spread.groups:
        dist.all_reduce(bad, group=group)
    bad_rows = bad.tolist()  # waits for the forward pass
    forward_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    records = []
    for name, layer in layers.items():
        record = GeometryRecord(
            step=step,
            tokens=tokens,
            probe=label,
            fingerprint=probe.fingerprint,
            layer=name,
            module=layer.module,
            positions=settings.positions,
            n=settings.features(probe),
            d=layer.store.d,
            metrics={},
            alpha_window=settings.alpha_window,
            precision=precision,
            batch_size=settings.batch_size,
            seconds_forward=forward_seconds,
            seconds_spectrum=0.0,
            notes=list(notes),
        )
        records.append(record)
    with _together(reader.spread.groups, device):
        _fill(records, [layer.store for layer in layers.values()], bad_rows, settings, device)
    for record in records:
        record.seconds_spectrum = (time.perf_counter() - begin) / len(records)
    return records


def _gather(
    reader: Reader,
    probe: ProbeSet,
    settings: Settings,
    device: torch.device,
    ending: Callable[[], bool] | None,
) -> tuple[dict[str, _Gathered], Settings, list[str], str]:
    """One pass over a probe, in smaller batches where memory runs out; all processes act alike."""
    notes: list[str] = []
    while True:
        error: Exception | None = None  # drops the last attempt, whose frames hold what filled the memory
        status, layers, precision = _OK, {}, ""
        try:
            with _one_pass(reader, settings, device):
                precision = _precision(reader, device)
                layers = _pass(reader, probe, settings, device, ending)
            for layer in layers.values() if reader.spread.groups else ():
                layer.store.prepare(settings.counts(probe))
        except EndingError:
            status = _ENDING
        except Exception as caught:
            if reader.spread.sharded:
                message = _LOST.format(rank(), type(caught).__name__, caught, settings.batch_size)
                raise LostPassError(message) from caught
            status, error = (_OUT_OF_MEMORY if isinstance(caught, torch.OutOfMemoryError) else _FAILED), caught
        status = worst(status, reader.spread.groups, device)
        if status == _OK:
            break
        if status == _ENDING:
            raise EndingError
        if status == _FAILED or settings.batch_size == 1:
            raise error or RuntimeError(_ELSEWHERE)
        settings = replace(settings, batch_size=settings.batch_size // 2)
        notes.append(f"out of memory: batch_size halved to {settings.batch_size}")
    for layer in layers.values():
        if reader.spread.groups:
            layer.store.all_reduce(reader.spread.groups)
    return layers, settings, notes, precision


@contextmanager
def _one_pass(reader: Reader, settings: Settings, device: torch.device) -> Iterator[None]:
    """Around forward passes: under the settings' autocast, and without a trace on the model."""
    try:
        with leave_no_trace(reader.called), settings.autocast(device):
            yield
    finally:
        if reader.spread.sharded:
            release(reader.called)


@contextmanager
def _together(groups: tuple[Any, ...], device: torch.device) -> Iterator[None]:
    """What fails inside on one process fails on all."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if worst(_OK if error is None else _FAILED, groups, device) != _OK:
        raise error or RuntimeError(_ELSEWHERE)


def _pass(
    reader: Reader,
    probe: ProbeSet,
    settings: Settings,
    device: torch.device,
    ending: Callable[[], bool] | None,
) -> dict[str, _Gathered]:
    layers: dict[str, _Gathered] = {}
    n = settings.features(probe)
    batches = probe.batches(settings.batch_size)
    for batch, counted in deal(batches, reader.spread.index, reader.spread.count):
        if ending is not None and not reader.spread.sharded and ending():  # among shards others wait in the same batch
            raise EndingError
        features, origin = reader.read(batch, settings.positions)
        for point in reader.points:
            feature_md = features[point.label]
            if point.label not in layers:
                d = feature_md.shape[1]
                own = feature_md.device  # a model may lie on several
                store = Rows(d) if n <= d or settings.intervals else Moments(d, own)
                layers[point.label] = _Gathered(store, torch.zeros((), dtype=torch.int64, device=own), point.name)
            layer = layers[point.label]
            kept = slice(None) if counted else slice(0)
            layer.bad += (~torch.isfinite(feature_md[kept]).all(1)).sum()
            layer.store.update(feature_md[kept], origin[kept])
    return layers


def _fill(
    records: list[GeometryRecord],
    stores: list[Moments | Rows],
    bad_rows: list[int],
    settings: Settings,
    device: torch.device,
) -> None:
    """Give each layer's record its numbers, which leave the device together."""
    found: dict[int, int] = {}  # eigenvalues of each record that has any
    parts: list[Tensor] = []
    for index, (record, store) in enumerate(zip(records, stores, strict=True)):
        if bad_rows[index]:  # checked before the solve: eigvalsh may return finite numbers for a matrix of NaN
            record.metrics, record.reasons = no_values(f"{bad_rows[index]} of {record.n} rows are not finite")
            continue
        spectrum = spectrum_of(store)
        found[index] = len(spectrum.eigenvalues)
        parts += [part.to(device) for part in (summarise(spectrum, settings.alpha_window), spectrum.eigenvalues)]
        if settings.intervals and isinstance(store, Rows):
            record.intervals = jackknife(store, settings.alpha_window)
    numbers = torch.cat(parts).cpu() if parts else torch.empty(0)
    for index, length in found.items():
        summary, values, numbers = torch.tensor_split(numbers, [_SUMMARY, _SUMMARY + length])
        record = records[index]
        record.metrics, record.reasons = explain(summary.tolist(), record.n, settings.alpha_window)
        record.eigenvalues = values.clone()


def _precision(reader: Reader, device: torch.device) -> str:
    """The name of the dtype in which the model computes."""
    if torch.is_autocast_enabled(device.type):
        return _dtype_name(torch.get_autocast_dtype(device.type))
    own = (p.dtype for p in reader.called.parameters() if p.is_floating_point())
    return _dtype_name(reader.spread.dtype or next(own, torch.float32))


def _dtype_name(dtype: torch.dtype | None) -> str:
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))
