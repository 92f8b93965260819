"""GeometryCallback for `lightning.Trainer`."""

from __future__ import annotations

from typing import Any

import lightning as L

from geomcallbacks.adapters.lightning import MonitorCallback, Row
from geomcallbacks.adapters.tracker import wandb_spectra
from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.probe import ProbeSet


class GeometryCallback(MonitorCallback):
    """Measures geometry while a Lightning Trainer fits, and logs it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry/<metric>` (one probe and one
    layer; else `geometry/<probe>/<layer>/<metric>`) to every logger of the Trainer at the update's number, to
    `trainer.callback_metrics` (so that ModelCheckpoint and EarlyStopping can monitor it), to the progress bar (RankMe
    only) and to `geometry.jsonl` in `trainer.log_dir`. Among them is `phase`: 0, 1, 2 (`geomcallbacks.phases`); the
    terminal says in words when another one begins.

    Args:
        probe: one ProbeSet, or several by label.
        **settings: those of `GeometryMonitor`.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training starts, for
            those that do not fit the model.
    """

    file = "geometry.jsonl"

    def __init__(self, probe: ProbeSet | dict[str, ProbeSet], **settings: Any) -> None:
        self.monitor = GeometryMonitor(probe, **settings)
        super().__init__(self.monitor)

    def _measured(self, pl_module: L.LightningModule, step: int, last: bool) -> Row | None:
        monitor = self.monitor
        records = monitor.step(pl_module, step, last=last)
        if not records:
            return None
        values = monitor.log_row(records)
        missing = [f"{monitor.log_key(record)}/{name}" for record in records for name in (*record.reasons, "phase")]
        shown = [key for key in values if key.endswith("/rankme")]
        return Row(values, missing, shown, lambda: wandb_spectra(monitor, records), monitor.transitions)
