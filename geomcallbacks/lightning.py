"""GeometryCallback for `lightning.Trainer`."""

from __future__ import annotations

from geomcallbacks.adapters.callback import GeometryArguments
from geomcallbacks.adapters.lightning import MonitorCallback


class GeometryCallback(GeometryArguments, MonitorCallback):
    """Measure geometry while a Lightning Trainer fits, and log it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry[/<label>][/<layer>]/<metric>`
    (the label that the probe was given, the layer that is not the last) to every logger of the Trainer at the update's
    number, to `trainer.callback_metrics` (ModelCheckpoint, EarlyStopping or a scheduler that monitors one has it
    measured whenever it looks), to the progress bar (RankMe only) and to `geometry.jsonl` in `trainer.log_dir`. Among
    the metrics is `phase`: 0, 1, 2 (`geomcallbacks.phases`); the terminal says in words when another one begins.

    Args:
        probe: one ProbeSet, or several by label.
        layers, positions, …: see `geomcallbacks.settings.Settings`, or the README's table.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """
