"""GeometryCallback for `lightning.Trainer`: hooks, step, loggers, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.probe import ProbeSet
from geomcallbacks.record import GeometryRecord
from geomcallbacks.tracker import TrackerQueue, wandb_spectra


class GeometryCallback(L.Callback):
    """Measures geometry while a Lightning Trainer fits, and logs it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry/<metric>` (one probe and one
    layer; else `geometry/<probe>/<layer>/<metric>`) to every logger of the Trainer at the update's number, to
    `trainer.callback_metrics` (so that ModelCheckpoint and EarlyStopping can monitor it), to the progress bar (RankMe
    only) and to `geometry.jsonl` in `trainer.log_dir`.

    Args:
        probe: one ProbeSet, or several by label.
        **settings: those of `GeometryMonitor`.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training starts, for
            those that do not fit the model.
    """

    def __init__(self, probe: ProbeSet | dict[str, ProbeSet], **settings: Any) -> None:
        self.monitor = GeometryMonitor(probe, **settings)
        self._default_path = settings.get("path") is None
        self._queue = TrackerQueue()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check probe and model, and measure update 0 of a run that is not resumed."""
        folder = trainer.log_dir  # asked on every process: Lightning broadcasts it
        if self._default_path:
            place = Path(folder or trainer.default_root_dir) / "geometry.jsonl"
            self.monitor.path = None if trainer.fast_dev_run else place
        # A checkpoint written in a batch's last hook holds a counter that has not moved on yet: ours has.
        step = self.monitor.resumed_from or trainer.fit_loop.epoch_loop._batches_that_stepped
        total = trainer.estimated_stepping_batches
        known = int(total) if math.isfinite(total) and total >= 0 else None
        with trainer.precision_plugin.forward_context():
            self.monitor.start(pl_module, step=step, total_steps=known)
        if step == 0:
            self._step(trainer, pl_module, step, last=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if this batch ended in an update and it is due."""
        if trainer.fit_loop._should_accumulate():
            return
        # global_step counts the steps of every optimiser; this counter moves on after the hook.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early  # min_epochs and min_steps come first
        last = stops or 0 <= trainer.max_steps <= trainer.global_step
        self._step(trainer, pl_module, step, last)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the last update of a run that was stopped early; any other run's last has been measured by now.

        No hook comes sooner: EarlyStopping decides after all other callbacks' `on_train_epoch_end`.
        """
        self._step(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped, last=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the record file."""
        self._queue.flush()
        self.monitor.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the record file: Lightning calls no `teardown` then, and the file must not stay locked."""
        self.teardown(trainer, pl_module, "fit")

    @property
    def state_key(self) -> str:
        """Tells several of these callbacks apart in a checkpoint."""
        return f"{type(self).__qualname__} {self.monitor.key}"

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for the checkpoint."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of a run that was measured on other probes."""
        self.monitor.load_state_dict(state_dict)

    def _step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int, last: bool) -> None:
        with trainer.precision_plugin.forward_context():
            records = self.monitor.step(pl_module, step, last=last)
        if not records:
            return
        row = self.monitor.log_row(records)
        # Not through self.log: it reaches loggers on the log_every_n_steps grid only, and repeats what it was given.
        # What has no value is NaN there, which ModelCheckpoint ranks last: an old value would be taken for a new one.
        missing = {f"{self.monitor.log_key(record)}/{name}": math.nan for record in records for name in record.reasons}
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in (missing | row).items()})
        rank_me = {key: value for key, value in row.items() if key.endswith("/rankme")}
        trainer.progress_bar_metrics.update(rank_me)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self._log(logger, row, step, records)

    def _log(self, logger: Logger, row: dict[str, float], step: int, records: list[GeometryRecord]) -> None:
        if isinstance(logger, CSVLogger):  # a local file, whose writer two threads must not share
            logger.log_metrics(row, step)
            return
        _ = logger.experiment  # opened here rather than in the queue's thread
        extra = wandb_spectra(self.monitor, records) if isinstance(logger, WandbLogger) else {}
        self._queue.submit(type(logger).__name__, lambda: logger.log_metrics({**row, **extra}, step))
