"""What every callback of ours under `lightning.Trainer` shares: its hooks, its step, and where its rows go."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from geomcallbacks.adapters.callback import Monitored
from geomcallbacks.adapters.tracker import Row, wandb_histograms
from geomcallbacks.reading.weights import average, held_by_optimizers, same_weights


class MonitorCallback(Monitored, L.Callback):
    """Drive a monitor by Lightning's hooks: at update 0, after each update, and at the last.

    The record file lies in `trainer.log_dir`, where the monitor was given none.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check arguments and model, and measure update 0, or that of a checkpoint whose measurement is missing."""
        folder = trainer.log_dir  # asked on every rank: Lightning broadcasts it
        # A checkpoint written in a batch's last hook holds a counter that has not moved on yet: ours has.
        step = self.monitor.resumed_from or trainer.fit_loop.epoch_loop._batches_that_stepped
        total = trainer.estimated_stepping_batches
        with trainer.precision_plugin.forward_context():
            self.monitor.start(
                pl_module,
                step=step,
                total_steps=int(total) if math.isfinite(total) and total >= 0 else None,
                path=None if trainer.fast_dev_run else Path(folder or trainer.default_root_dir) / self._file,
                ending=lambda: trainer.received_sigterm,
                weights=lambda: _held_weights(trainer, pl_module),
            )
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
        """Return plain numbers and strings for the checkpoint."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the record file of the checkpoint's run. See the monitor's `load_state_dict`."""
        self.monitor.load_state_dict(state_dict)

    def _step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int, last: bool) -> None:
        with trainer.precision_plugin.forward_context():
            found = self.monitor.step(pl_module, step, last=last)
        if not found:
            return
        row = self._make_row(self.monitor, found)
        # Not through self.log: it reaches loggers on the log_every_n_steps grid only, and repeats what it was given.
        # What has no value is NaN there, which ModelCheckpoint ranks last: an old value would be taken for a new one.
        seen = dict.fromkeys(row.missing, math.nan) | dict(row.values)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in seen.items()})
        trainer.progress_bar_metrics.update({key: row.values[key] for key in row.shown if key in row.values})
        if not (trainer.is_global_zero and row.values):
            return
        for logger in trainer.loggers:
            self._log(logger, row, step)
        bar = trainer.progress_bar_callback
        for sentence in row.sentences:
            rank_zero_info(sentence) if bar is None else bar.print(sentence)

    def _log(self, logger: Logger, row: Row, step: int) -> None:
        if isinstance(logger, CSVLogger):  # a local file, whose writer two threads must not share
            logger.log_metrics(dict(row.values), step)
            return
        _ = logger.experiment  # opened here rather than in the queue's thread
        histograms = wandb_histograms(row.spectra) if isinstance(logger, WandbLogger) else {}
        self._queue.submit(type(logger).__name__, lambda: logger.log_metrics({**row.values, **histograms}, step))


def _held_weights(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """Say which weights the module holds: Lightning's averaging callbacks copy the average into it as training ends."""
    for callback in trainer.callbacks:
        if isinstance(callback, (StochasticWeightAveraging, WeightAveraging)):
            kept = callback._average_model
            counted = callback if isinstance(callback, StochasticWeightAveraging) else kept
            # An average of one is what training has moved to.
            if (
                kept is not None
                and int(getattr(counted, "n_averaged", None) or 0) > 1
                and same_weights(pl_module, kept)
            ):
                return average(type(callback).__name__)
    return held_by_optimizers(trainer.optimizers)
