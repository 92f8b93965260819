"""GeometryCallback for `transformers.Trainer` and every TRL trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from geomcallbacks.adapters.hf import MonitorCallback
from geomcallbacks.adapters.tracker import geometry_row
from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.probe import ProbeSet
from geomcallbacks.schedule import Schedule
from geomcallbacks.settings import DEFAULT_WINDOW, ForwardFn, Layers, OnError, Positions, Precision, Settings


class GeometryCallback(MonitorCallback):
    """Measure geometry while a Trainer trains, and log it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry/<metric>` (one probe and one
    layer; else `geometry/<probe>/<layer>/<metric>`) to W&B and TensorBoard against the loss's own x axis, to
    `state.log_history`, to the terminal, and to `geometry.jsonl` in `args.output_dir`. Any other tracker that
    `report_to` names is handed the row through its own callback, which prefixes `train/` as it does to the loss.
    Among them is `phase`: 0, 1, 2 (`geomcallbacks.phases`); the terminal says in words when another one begins.

    Args:
        probe: one ProbeSet, or several by label.
        layers, positions, …: see `geomcallbacks.settings.Settings`, or the README's table.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """

    monitor: GeometryMonitor

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
        super().__init__(GeometryMonitor(probe, **Settings.among(locals())), geometry_row, "geometry.jsonl")
