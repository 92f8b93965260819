"""BehaviourCallback for `lightning.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from geomcallbacks.adapters.lightning import MonitorCallback, Row
from geomcallbacks.behaviour.monitor import BehaviourMonitor, Measure


class BehaviourCallback(MonitorCallback):
    """Measures what a model does while a Lightning Trainer fits, and logs it beside loss and geometry.

    At update 0, at the scheduled updates and at the last, each number goes as `behaviour/<name>/<key>` to every logger
    of the Trainer at the update's number, to `trainer.callback_metrics` (NaN where a number is not finite), and as
    `<name>/<key>` to `behaviour.jsonl` in `trainer.log_dir`, which `read_records` reads.

    Args:
        measures: by name: the model in, numbers by key out. `CompletionLoss`, `ChoiceAccuracy` and `Memorisation` are
            such, and so is any function.
        **settings: those of `BehaviourMonitor`.

    Raises:
        TypeError, ValueError: at construction, for arguments that are wrong by themselves; when training starts, for
            those that do not fit the model.
    """

    file = "behaviour.jsonl"

    def __init__(self, measures: Mapping[str, Measure], **settings: Any) -> None:
        self.monitor = BehaviourMonitor(measures, **settings)
        super().__init__(self.monitor)

    def _measured(self, pl_module: L.LightningModule, step: int, last: bool) -> Row | None:
        found = {f"behaviour/{key}": value for key, value in self.monitor.step(pl_module, step, last=last).items()}
        if not found:
            return None
        values = {key: value for key, value in found.items() if value is not None}
        return Row(values, missing=found.keys() - values.keys())
