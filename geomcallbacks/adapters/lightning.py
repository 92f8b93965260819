"""What every callback of ours under `lightning.Trainer` shares: its hooks, its step, and where its rows go."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from geomcallbacks.adapters.callback import Monitored
from geomcallbacks.adapters.readers import keys_read, reads_now
from geomcallbacks.adapters.tracker import Row, wandb_histograms
from geomcallbacks.reading.weights import average, held_by_optimizers, same_weights
from geomcallbacks.running.messages import show
from geomcallbacks.running.processes import announce


class MonitorCallback(Monitored, L.Callback):
    """Drive a monitor by Lightning's hooks: at update 0, after each update, and at the last.

    The record file lies in `trainer.log_dir`, where the monitor was given none. `trainer.callback_metrics` has our
    numbers as long as they are those of the present weights. What reads them (ModelCheckpoint, EarlyStopping, a
    scheduler that monitors one) has them measured when it does.
    """

    _updates = 0  # that the weights have received. No counter of Lightning's survives its tuners.
    _measured_at = -1
    _logged: tuple[str, ...] = ()  # keys that stand in callback_metrics

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind the module's functions that Lightning hangs onto every callback, and with them the model."""
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the other processes know of us: other callbacks may keep one from training for a while."""
        announce()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check arguments and model, and measure update 0, or that of a checkpoint whose measurement is missing."""
        folder = trainer.log_dir  # asked on every rank: Lightning broadcasts it
        loop = trainer.fit_loop.epoch_loop
        # global_step counts the steps of every optimiser. A checkpoint written in a batch's last hook holds another
        # counter that has not moved on yet: ours has.
        counted = loop.global_step if pl_module.automatic_optimization else loop._batches_that_stepped
        self._updates, self._measured_at, self._logged = self.monitor.resumed_from or counted, -1, ()
        with trainer.precision_plugin.forward_context():
            self.monitor.start(
                pl_module,
                step=self._updates,
                total_steps=_total_updates(trainer),
                path=None if trainer.fast_dev_run else self._place(Path(folder or trainer.default_root_dir)),
                ending=lambda: trainer.received_sigterm,
                driven=True,
                weights=lambda: _held_weights(trainer, pl_module),
            )
        self._refuse_shared_keys(trainer.callbacks)
        for reader, key in keys_read(trainer, self._prefix):
            self._refuse_unknown(reader, key, trainer.callbacks)
        self._measure_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if this batch ended in an update and it is due, or somebody reads it now."""
        if trainer.fit_loop._should_accumulate():
            return
        self._updates += 1
        for key in self._logged:  # of weights that are no more
            trainer.callback_metrics.pop(key, None)
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early  # min_epochs and min_steps come first
        last = stops or 0 <= trainer.max_steps <= trainer.global_step
        self._measure_if_due(trainer, pl_module, last=last)
        if reads_now(trainer, self._prefix, self._updates):
            self._measure_for_readers(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what is read when validation ends."""
        if self.monitor.running and not trainer.sanity_checking and any(keys_read(trainer, self._prefix)):
            self._measure_for_readers(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what is read when the epoch ends, also by a callback behind ours that has stopped it early."""
        if any(keys_read(trainer, self._prefix)):
            self._measure_for_readers(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the last update of a run that was stopped early; any other run's last has been measured by now.

        No hook comes sooner: EarlyStopping decides after all other callbacks' `on_train_epoch_end`.
        """
        self._measure_if_due(trainer, pl_module, last=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the record file."""
        self._queue.close()
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

    def _place(self, folder: Path) -> Path:
        """Return where the record file is to be: a resumed run's stays, though its logger takes another folder."""
        known, folder = self.monitor.resumed_file, folder.resolve()
        versions = known is not None and {known.parent.name[:8], folder.name[:8]} == {"version_"}
        if known is not None and versions and known.parent.parent == folder.parent and known.is_file():
            folder = known.parent
        return folder / self._file

    def _measure_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule, last: bool = False) -> None:
        with trainer.precision_plugin.forward_context():
            found = self.monitor.step(pl_module, self._updates, last=last)
        self._keep(trainer, found)

    def _measure_for_readers(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure now, unless that is done."""
        if self._measured_at != self._updates:
            with trainer.precision_plugin.forward_context():
                found = self.monitor.measure(pl_module, self._updates)
            self._keep(trainer, found)

    def _keep(self, trainer: L.Trainer, found: Any) -> None:
        """Log what was found or has failed."""
        if not found and not self.monitor.failed:
            return
        self._measured_at = self._updates
        row = self._make_row(self.monitor, found)
        # Not through self.log: it reaches loggers on the log_every_n_steps grid only, and repeats what it was given.
        # What has no value is NaN there, which ModelCheckpoint ranks last.
        seen = dict.fromkeys(row.missing, math.nan) | dict(row.values)
        self._logged = tuple(seen)
        trainer.callback_metrics.update({key: torch.tensor(value, device="cpu") for key, value in seen.items()})
        trainer.progress_bar_metrics.update({key: row.values[key] for key in row.shown if key in row.values})
        if not (trainer.is_global_zero and row.values):
            return
        for logger in trainer.loggers:
            self._log(logger, row)
        bar = trainer.progress_bar_callback
        for sentence in row.sentences:
            show(sentence, rank_zero_info if bar is None else bar.print)

    def _log(self, logger: Logger, row: Row) -> None:
        name, step = type(logger).__name__, self._updates
        if isinstance(logger, WandbLogger | TensorBoardLogger):  # those that are known to take rows from any thread
            self._queue.call(name, lambda: logger.experiment)  # opened here
            histograms = wandb_histograms(row.spectra) if isinstance(logger, WandbLogger) else {}
            self._queue.submit(name, lambda: logger.log_metrics({**row.values, **histograms}, step))
        else:
            self._queue.call(name, lambda: logger.log_metrics(dict(row.values), step))


def _total_updates(trainer: L.Trainer) -> int | None:
    """Return the updates of the run, where they are known; Lightning's own estimate takes accumulation for constant."""
    total = trainer.estimated_stepping_batches
    known = math.isfinite(total) and total >= 0
    schedules = [each for each in trainer.callbacks if isinstance(each, GradientAccumulationScheduler)]
    if known and schedules and trainer.max_epochs is not None and trainer.max_epochs > 0:
        steps = [schedules[0].get_accumulate_grad_batches(epoch) for epoch in range(trainer.max_epochs)]
        total = sum(math.ceil(trainer.num_training_batches / each) for each in steps)
        total = min(total, trainer.max_steps) if trainer.max_steps != -1 else total
    return int(total) if known else None


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
