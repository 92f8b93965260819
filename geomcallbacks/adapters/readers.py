"""What reads `trainer.callback_metrics` of a Lightning run, and when: checkpoints, early stopping, schedulers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import lightning as L

from geomcallbacks.running.processes import first_decides


def keys_read(trainer: L.Trainer, prefix: str) -> Iterator[tuple[str, str]]:
    """Give what reads a key that begins with `prefix`, in words, and the key."""
    for reader in trainer.callbacks:
        for key in _keys_of(reader, prefix):
            yield f"{type(reader).__name__}: monitor or filename", key
    for scheduler in _schedulers(trainer, prefix):
        yield "lr_scheduler: monitor", scheduler.monitor


def reads_now(trainer: L.Trainer, prefix: str, updates: int) -> bool:
    """Whether something reads such a key in or behind this batch's last hook, before the next update.

    Args:
        trainer: in `on_train_batch_end`.
        prefix: of the keys.
        updates: that the weights have received.
    """
    readers = [each for each in trainer.callbacks if _keys_of(each, prefix)]
    schedulers = _schedulers(trainer, prefix)
    if not readers and not schedulers:
        return False
    if trainer.is_last_batch or any(s.interval == "step" and updates % s.frequency == 0 for s in schedulers):
        return True
    every = [getattr(reader, "_every_n_train_steps", 0) for reader in readers]
    if any(number and trainer.global_step % number == 0 for number in every):
        return True
    clocks = [reader for reader in readers if getattr(reader, "_train_time_interval", None) is not None]
    # Clocks differ between ranks.
    return bool(clocks) and first_decides(any(map(_is_time, clocks)), trainer.strategy.root_device)


def _keys_of(reader: Any, prefix: str) -> list[str]:
    named = re.findall(r"{([^}:]+)", getattr(reader, "filename", None) or "")
    read = [*named, getattr(reader, "monitor", None)]
    return [key for key in read if isinstance(key, str) and key.startswith(prefix)]


def _schedulers(trainer: L.Trainer, prefix: str) -> list[Any]:
    return [each for each in trainer.lr_scheduler_configs if (each.monitor or "").startswith(prefix)]


def _is_time(reader: Any) -> bool:
    since = reader._last_time_checked
    return since is None or time.monotonic() - since >= reader._train_time_interval.total_seconds()
