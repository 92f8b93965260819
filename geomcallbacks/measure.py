"""One measurement: a model and a probe in, a GeometryRecord for each layer out.

All processes of a run take part and end with the same numbers or the same failure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomcallbacks.distributed import rank, world_size, worst
from geomcallbacks.hidden import (
    ForwardFn,
    Positions,
    Reader,
    check_positions,
    leave_no_trace,
    position_count,
)
from geomcallbacks.intervals import jackknife
from geomcallbacks.locate import Layers, layer_list
from geomcallbacks.metrics import DEFAULT_WINDOW, check_window, describe, no_values
from geomcallbacks.moments import Moments, Rows
from geomcallbacks.probe import ProbeSet, deal
from geomcallbacks.record import GeometryRecord
from geomcallbacks.spectrum import spectrum_of

_OK, _OUT_OF_MEMORY, _FAILED = 0, 1, 2
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


@dataclass(frozen=True)
class Settings:
    """How a probe is read; the arguments of GeometryMonitor of the same names.

    Raises:
        ValueError: a value is wrong by itself.
    """

    layers: Layers = -1
    positions: Positions = "last"
    alpha_window: tuple[int, int] = DEFAULT_WINDOW
    precision: str = "training"
    module: str | None = None
    forward: ForwardFn | None = None
    batch_size: int = 32
    intervals: bool = False

    def __post_init__(self) -> None:
        check_positions(self.positions)
        object.__setattr__(self, "alpha_window", check_window(self.alpha_window))
        if self.precision not in ("training", "fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is unknown: give 'training', 'fp32' or 'bf16'")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}: give a positive number of rows")
        for layer in layer_list(self.layers):
            if not isinstance(layer, (int, str)) or isinstance(layer, bool):
                raise ValueError(f"layers={self.layers!r} is no layer: give a number, a submodule's name, or a list")

        if not isinstance(self.layers, (int, str)):
            object.__setattr__(self, "layers", layer_list(self.layers))

    def reader(self, model: nn.Module) -> Reader:
        """What is called and read of this model."""
        return Reader(model, self.layers, self.module, self.forward)

    def features(self, probe: ProbeSet) -> int:
        """n: how many features the probe gives."""
        return int(position_count(probe.lengths_n, self.positions).sum())

    def check_probe(self, label: str, probe: ProbeSet, d: int | None = None) -> None:
        """Raise ``ValueError`` where the probe's rows, or n and d, cannot support positions or window."""
        check_positions(self.positions, probe.lengths_n)
        n = self.features(probe)
        most = n - 1 if d is None else min(n - 1, d)
        if self.alpha_window[1] > most:
            given = f"n = {n} features" + ("" if d is None else f" of d = {d}")
            advice = f", such as alpha_window=({max(2, most // 8)}, {3 * most // 4})" if most >= 8 else ""
            raise ValueError(
                f"alpha_window={self.alpha_window} reaches past the {most} eigenvalues that {given} of probe {label!r}"
                f" have: end it at {most} or below{advice}, or take more rows or positions"
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The autocast under which the probe runs; that which is active, for precision="training"."""
        if self.precision == "fp32":
            return torch.autocast(device.type, enabled=False)
        if self.precision == "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
        if torch.is_autocast_enabled(device.type):
            # Weights that autocast caches without gradients here would be used by the training step around us.
            return torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type), cache_enabled=False)
        return nullcontext()


@dataclass
class _Gathered:
    """What one pass over a probe has gathered of one layer."""

    store: Moments | Rows
    bad: Tensor  # rows with a non-finite value, 0-d on the device
    module: str


def about(settings: Settings, probes: Mapping[str, ProbeSet]) -> dict[str, Any]:
    """What the header of a record file says of how probes are read, and of which."""
    return {
        "settings": {key: value for key, value in vars(settings).items() if key != "forward"},
        "probes": {label: {"fingerprint": p.fingerprint, "rows": len(p)} for label, p in probes.items()},
    }


def check_fit(model: nn.Module, probes: dict[str, ProbeSet], settings: Settings) -> list[str]:
    """Try the model on one short row of each probe, before training.

    Returns:
        Warnings, for n < 4d.

    Raises:
        ValueError: the model's vocabulary, its layers or its d do not fit probe and settings.
    """
    reader = settings.reader(model)
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
        with leave_no_trace(reader.called), settings.autocast(device_of(reader.called)):
            features, _ = reader.read(probe.batch(probe.lengths_n.argmin(0, keepdim=True)), settings.positions)
        n = settings.features(probe)
        for feature_md in features.values():
            d = feature_md.shape[1]
            settings.check_probe(label, probe, d)
            if n < 4 * d:
                warnings.append(
                    f"probe {label!r} gives n = {n} features of d = {d}: below 4 d = {4 * d}, RankMe and its relatives"
                    " are biased downward, so compare only runs with the same n"
                )
    return warnings


def measure_probe(
    model: nn.Module, label: str, probe: ProbeSet, settings: Settings, *, step: int, tokens: int | None = None
) -> list[GeometryRecord]:
    """The geometry of `model` on one probe.

    Args:
        model: as the training loop holds it. Its modes, gradients and random states are left as they are.
        label: name of the probe.
        probe: the rows.
        settings: how they are read. Where memory runs out, with half the `batch_size`; records say so.
        step: optimiser updates that the weights have received.
        tokens: training tokens seen.

    Returns:
        A record for each layer.
    """
    begin = time.perf_counter()
    reader = settings.reader(model)
    device = device_of(reader.called)
    layers, settings, notes, precision = _gather(reader, probe, settings, device)
    bad = torch.stack([layer.bad for layer in layers.values()])
    if world_size() > 1:
        dist.all_reduce(bad)
    bad_rows = bad.tolist()  # waits for the forward pass
    forward_seconds = time.perf_counter() - begin
    records = []
    for (name, layer), bad_here in zip(layers.items(), bad_rows, strict=True):
        begin = time.perf_counter()
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
        _fill(record, layer.store, int(bad_here), settings)
        record.seconds_spectrum = time.perf_counter() - begin
        records.append(record)
    return records


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _gather(
    reader: Reader, probe: ProbeSet, settings: Settings, device: torch.device
) -> tuple[dict[str, _Gathered], Settings, list[str], str]:
    """One pass over a probe, in smaller batches where memory runs out; all processes act alike."""
    notes: list[str] = []
    while True:
        error: Exception | None = None  # drops the last attempt, whose frames hold what filled the memory
        status, layers, precision = _OK, {}, ""
        try:
            with leave_no_trace(reader.called), settings.autocast(device):
                precision = _precision(reader.called, device)
                layers = _pass(reader, probe, settings, device)
        except torch.OutOfMemoryError as caught:
            status, error = _OUT_OF_MEMORY, caught
        except Exception as caught:
            status, error = _FAILED, caught
        status = worst(status, device)
        if status == _OK:
            break
        if status == _FAILED or settings.batch_size == 1:
            raise error or RuntimeError("another process failed to measure: its own message says why")
        settings = replace(settings, batch_size=settings.batch_size // 2)
        notes.append(f"out of memory: batch_size halved to {settings.batch_size}")
    if world_size() > 1:
        for layer in layers.values():
            layer.store.all_reduce()
    return layers, settings, notes, precision


def _pass(reader: Reader, probe: ProbeSet, settings: Settings, device: torch.device) -> dict[str, _Gathered]:
    layers: dict[str, _Gathered] = {}
    n = settings.features(probe)
    for batch, counted in deal(probe.batches(settings.batch_size), rank(), world_size()):
        features, origin = reader.read(batch, settings.positions)
        for point in reader.points:
            feature_md = features[point.label]
            if point.label not in layers:
                d = feature_md.shape[1]
                store = Rows(d) if n <= d or settings.intervals else Moments(d, device)
                layers[point.label] = _Gathered(store, torch.zeros((), dtype=torch.int64, device=device), point.name)
            layer = layers[point.label]
            kept = slice(None) if counted else slice(0)
            layer.bad += (~torch.isfinite(feature_md[kept]).all(1)).sum()
            layer.store.update(feature_md[kept], origin[kept])
    return layers


def _fill(record: GeometryRecord, store: Moments | Rows, bad_rows: int, settings: Settings) -> None:
    if bad_rows:  # checked before the solve: eigvalsh may return finite numbers for a matrix of NaN
        record.metrics, record.reasons = no_values(f"{bad_rows} of {record.n} rows are not finite")
        return
    spectrum = spectrum_of(store)
    record.metrics, record.reasons = describe(spectrum, settings.alpha_window)
    record.eigenvalues = spectrum.eigenvalues.cpu()
    if settings.intervals and isinstance(store, Rows):
        record.intervals = jackknife(store, settings.alpha_window)


def _precision(model: nn.Module, device: torch.device) -> str:
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    else:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))
