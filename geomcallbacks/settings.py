"""Every setting of a measurement and of a run, once: constructors, record headers and the README's table follow it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from geomcallbacks.metrics import DEFAULT_WINDOW, check_window
from geomcallbacks.probe import ProbeSet
from geomcallbacks.reading.locate import Layers, layer_list
from geomcallbacks.reading.positions import Positions, check_positions, position_count
from geomcallbacks.reading.reader import ForwardFn, Reader
from geomcallbacks.running.messages import OnError
from geomcallbacks.schedule import Schedule

#: The types of a constructor's arguments lie here together.
__all__ = [
    "DEFAULT_WINDOW",
    "ForwardFn",
    "Layers",
    "OnError",
    "Positions",
    "Precision",
    "ReadingSettings",
    "Settings",
    "labelled",
]

Precision = Literal["training", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How a probe is read. `geomcallbacks trace` takes these too.

    Attributes:
        layers: `-1`: what enters the LM head, after the final norm where the model has one; `0` … depth: the model's
            own `hidden_states`; the name of a submodule; or a list of these. A trial pass at the start proves each.
        positions: `"last"`: the last token of each row; `k`: so many evenly spaced positions; `"all"` but the first;
            `"mean"` of these.
        alpha_window: ranks (first, last) over which α is fitted, 1-based and inclusive. A model with d < 128 needs a
            window of its own, and α is never comparable across windows.
        precision: `"training"`: under the autocast of training; `"bf16"`: under autocast of its own; `"fp32"`: without
            any.
        module: name of the submodule to read, where the model is no causal language model of Transformers, or holds
            two.
        forward: `(model, input_ids, attention_mask) -> …`, for models that are not called with `input_ids`.
        batch_size: rows of the probe that go through the model together. Part of what a number means in low precision,
            so it is recorded; halved where memory runs out, and the record says so.
        intervals: a 95 % interval for each metric, by a jackknife over 20 groups of probe rows.

    Raises:
        ValueError: a value is wrong by itself.
    """

    layers: Layers = -1
    positions: Positions = "last"
    alpha_window: tuple[int, int] = DEFAULT_WINDOW
    precision: Precision = "training"
    module: str | None = None
    forward: ForwardFn | None = None
    batch_size: int = 32
    intervals: bool = False

    def __post_init__(self) -> None:
        check_positions(self.positions)
        object.__setattr__(self, "alpha_window", check_window(self.alpha_window))
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r} is unknown: give 'training', 'fp32' or 'bf16'")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}: give a positive number of rows")
        for layer in layer_list(self.layers):
            if not isinstance(layer, (int, str)) or isinstance(layer, bool):
                raise ValueError(f"layers={self.layers!r} is no layer: give a number, a submodule's name, or a list")
        if not isinstance(self.layers, (int, str)):
            object.__setattr__(self, "layers", layer_list(self.layers))

    def reader(self, model: nn.Module) -> Reader:
        """Resolve what is called and read of this model."""
        return Reader(model, self.layers, self.module, self.forward)

    def counts(self, probe: ProbeSet) -> Tensor:
        """Return how many features each row of the probe gives, (rows,)."""
        return position_count(probe.lengths_n, self.positions)

    def features(self, probe: ProbeSet) -> int:
        """Return n, how many features the probe gives."""
        return int(self.counts(probe).sum())

    def check_probe(self, label: str, probe: ProbeSet, d: int | None = None) -> None:
        """Raise ``ValueError`` where the probe's rows, or n and d, cannot support positions or window."""
        check_positions(self.positions, probe.lengths_n)
        n = self.features(probe)
        most = n - 1 if d is None else min(n - 1, d)
        if 3 <= most < self.alpha_window[1]:  # no window at all fits fewer: α has no value then, and all else has
            given = f"n = {n} features" + ("" if d is None else f" of d = {d}")
            advice = f", such as alpha_window=({max(2, most // 8)}, {3 * most // 4})" if most >= 8 else ""
            if d is None:  # what fits n may not fit the model: no advice that the next error takes back
                advice = ", and at the model's d"
            raise ValueError(
                f"alpha_window={self.alpha_window} reaches past the {most} eigenvalues that {given} of probe {label!r}"
                f" have: end it at {most} or below{advice}, or take more rows or positions"
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the autocast under which the probe runs; the active one, for precision="training"."""
        if self.precision == "fp32":
            return torch.autocast(device.type, enabled=False)
        if self.precision == "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
        if torch.is_autocast_enabled(device.type):
            # Weights that autocast caches without gradients here would be used by the training step around us.
            return torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type), cache_enabled=False)
        return nullcontext()

    def header(self) -> dict[str, Any]:
        """Return what a record file's header says of how probes are read."""
        return {field.name: getattr(self, field.name) for field in fields(ReadingSettings) if field.name != "forward"}


@dataclass(frozen=True, kw_only=True)
class Settings(ReadingSettings):
    """How a probe is read, and when and where a run is recorded: all arguments of GeometryMonitor but the probe.

    Attributes:
        schedule: at which updates to measure: `Schedule(every=, per_decade=, at=, budget=)`. The first update and the
            last are always measured.
        path: the record file. Trainer and Lightning write `geometry.jsonl` in the output folder unless told; a monitor
            in a loop of your own writes none.
        on_error: `"warn"`: a measurement that fails is reported once, and training goes on; or `"raise"`.
        spectra: keep the whole eigenspectrum of each measurement in `geometry-spectra/` (safetensors).
        tokens_per_update: training tokens of one update, to record how many were seen.
        total_steps: updates of the run, where the loop does not tell: the last is then measured, and spacing follows
            the run's length.
        from_scratch: whether the run starts from random weights, so that a first fall of RankMe is warm-up and not
            compression. `None`: it does if it starts at update 0. Say `False` where trained weights are trained
            further.
        allow_change: go on from a checkpoint though it was measured on another probe, or with another window,
            precision or positions. Otherwise that is refused, with both values.

    Raises:
        ValueError: a value is wrong by itself.
    """

    schedule: Schedule = Schedule()  # noqa: RUF009 (frozen)
    path: str | Path | None = None
    on_error: OnError = "warn"
    spectra: bool = True
    tokens_per_update: int | None = None
    total_steps: int | None = None
    from_scratch: bool | None = None
    allow_change: bool = False

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings among a constructor's `locals()`.

        Constructors spell their arguments out, so that an editor shows them and mypy checks them; a test holds the
        signatures equal to these fields.
        """
        return {field.name: arguments[field.name] for field in fields(cls)}


def labelled(probe: ProbeSet | Mapping[str, ProbeSet]) -> dict[str, ProbeSet]:
    """Return probes by label, `"probe"` where one was given without; raise ``ValueError`` for what is none."""
    probes = dict(probe) if isinstance(probe, Mapping) else {"probe": probe}
    if not probes:
        raise ValueError("probe={} measures nothing: give a ProbeSet, or several by label")
    for label, rows in probes.items():
        if not isinstance(label, str) or not label or "/" in label:
            raise ValueError(f"probe has the label {label!r}: give a word without '/'")
        if not isinstance(rows, ProbeSet):
            raise ValueError(
                f"probe {label!r} is a {type(rows).__name__}, not a ProbeSet: build one with ProbeSet.from_texts"
            )
    return probes
