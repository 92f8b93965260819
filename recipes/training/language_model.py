"""What the pretraining recipe gives to Lightning: module, batches, checkpoints and progress bar."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SeededBatches(Sampler[list[int]]):
    """The rows of each batch, which depend on the seed and the number of the update alone.

    So a resumed run sees the rows that it would have seen, and the number of devices does not change what an
    update sees. Every pass over the rows has its own order; a batch may reach from one pass into the next.

    Args:
        rows: Number of rows to draw from.
        settings: ``batch_size``, rows an update over all devices and accumulated batches; ``accumulate``, batches an
            update on each device; ``updates`` of the whole run, those before ``start`` included; ``seed``.
        rank: The device that the rows are for, of ``world_size``.
        world_size: Number of devices.
        start: The update to start from.

    Raises:
        ValueError: The rows of an update cannot be dealt evenly.
    """

    def __init__(self, rows: int, settings: Any, *, rank: int = 0, world_size: int = 1, start: int = 0) -> None:
        accumulate, batches = settings.accumulate, settings.accumulate * world_size
        if settings.batch_size % batches:
            raise ValueError(
                f"batch_size={settings.batch_size} rows an update cannot be dealt evenly to {world_size} device(s) in "
                f"accumulate={accumulate} batches each; give a multiple of {batches}"
            )
        self.rows, self.seed, self.rank, self.world_size = rows, settings.seed, rank, world_size
        self.share = settings.batch_size // batches
        self.first, self.end = start * accumulate, settings.updates * accumulate

    def __len__(self) -> int:
        """Return the batches of the whole run: Lightning counts those before a resumption as done."""
        return self.end

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, []
        for batch in range(self.first, self.end):
            first = (batch * self.world_size + self.rank) * self.share
            chosen = []
            for position in range(first, first + self.share):
                if position // self.rows != epoch:
                    epoch = position // self.rows
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    order = torch.randperm(self.rows, generator=generator).tolist()
                chosen.append(order[position % self.rows])
            yield chosen


class SeededLoader(DataLoader[torch.Tensor]):
    """A loader that Lightning may resume in the middle of a pass: ``SeededBatches`` starts where it is told to."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the number of updates, which the checkpoint has, is all that is needed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, see ``state_dict``."""


class LanguageModel(L.LightningModule):
    """A causal language model with AdamW, a warm-up and then a cosine or constant learning rate."""

    def __init__(self, model: PreTrainedModel, rows_nt: torch.Tensor, settings: Any, start: int = 0) -> None:
        super().__init__()
        self.model, self.rows_nt, self.settings, self.start = model, rows_nt, settings, start

    def on_train_batch_start(self, batch_bt: torch.Tensor, batch_index: int) -> None:
        """Log every loss of the warm-up and the updates behind it, then every ``log_every``."""
        # The collapse is over in some tens of updates: a loss every ten would be three points of it.
        dense = self.trainer.global_step < max(100, 2 * self.settings.warmup)
        self.trainer.log_every_n_steps = 1 if dense else self.settings.log_every

    def training_step(self, batch_bt: torch.Tensor, batch_index: int) -> torch.Tensor:
        """Return the mean loss, in nats a token, of rows (batch, tokens)."""
        batch_bt = batch_bt.long()
        # Rows hold one token more than the model sees, so no logits are computed that have no label.
        logits_btv = self.model(input_ids=batch_bt[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_btv.flatten(0, 1).float(), batch_bt[:, 1:].flatten())
        # Logging takes a tenth of an update of the smallest model: only what will reach the loggers is logged.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("loss", loss)
        return loss

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        """Return this device's share of the batches."""
        place = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        batches = SeededBatches(len(self.rows_nt), self.settings, **place, start=self.start)
        return SeededLoader(self.rows_nt, batch_sampler=batches)  # a tensor is a data set of its rows

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW, which decays matrices only, and the schedule of its learning rate."""
        settings = self.settings
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            # Lightning refuses to clip the gradients of a fused optimiser under mixed precision.
            fused="mixed" not in str(self.trainer.precision),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate_factor(self, update: int) -> float:
        """Return the learning rate of an update (0-based) as a share of its maximum."""
        settings = self.settings
        if update < settings.warmup:
            return (update + 1) / settings.warmup
        if settings.lr_schedule == "constant":
            return 1.0
        progress = min(1.0, (update - settings.warmup) / max(1, settings.updates - settings.warmup))
        return settings.min_lr + (1 - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class SaveModel(L.Callback):
    """Saves the model and its tokenizer at given updates, as ``from_pretrained`` reads them."""

    def __init__(self, folder: Path, updates: Collection[int], tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder, self.updates, self.tokenizer = folder, frozenset(updates), tokenizer
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save the model if it is of an update that was asked for."""
        update = trainer.global_step
        if update not in self.updates or update == self._saved:  # accumulated batches share an update
            return
        self._saved = update
        # On every rank: a sharded strategy gathers the weights here.
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            folder = self.folder / f"step-{update:06d}"
            weights = {name.removeprefix("model."): value for name, value in state.items()}
            pl_module.model.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)

    on_train_batch_end = on_train_start


class GeometryBar(TQDMProgressBar):
    """A progress bar that shows the loss and the last RankMe."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what stands at the end of the bar."""
        seen = trainer.callback_metrics
        shown = {"loss": seen.get("loss"), "rankme": seen.get("geometry/rankme")}
        return {name: f"{float(value):.2f}" for name, value in shown.items() if value is not None}
