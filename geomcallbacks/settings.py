"""How a probe is read: the arguments that every measurement of a run shares."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.metrics import DEFAULT_WINDOW, check_window
from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.positions import Positions, check_positions, position_count
from geomcallbacks.reading.calling import ForwardFn
from geomcallbacks.reading.locate import Layers, layer_list
from geomcallbacks.reading.reader import Reader


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

    def counts(self, probe: ProbeSet) -> Tensor:
        """How many features each row of the probe gives, (rows,)."""
        return position_count(probe.lengths_n, self.positions)

    def features(self, probe: ProbeSet) -> int:
        """n: how many features the probe gives."""
        return int(self.counts(probe).sum())

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


def about(settings: Settings, probes: Mapping[str, ProbeSet]) -> dict[str, Any]:
    """What the header of a record file says of how probes are read, and of which."""
    return {
        "settings": {key: value for key, value in vars(settings).items() if key != "forward"},
        "probes": {label: {"fingerprint": p.fingerprint, "rows": len(p)} for label, p in probes.items()},
    }
