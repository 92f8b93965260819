"""BehaviourCallback for `lightning.Trainer`."""

from __future__ import annotations

from geomcallbacks.adapters.lightning import MonitorCallback
from geomcallbacks.behaviour.monitor import BehaviourArguments


class BehaviourCallback(BehaviourArguments, MonitorCallback):
    """Measure what a model does while a Lightning Trainer fits, and log it beside loss and geometry.

    At update 0, at the scheduled updates and at the last, each number goes as `behaviour/<name>/<key>` to every logger
    of the Trainer at the update's number, to `trainer.callback_metrics` (NaN where a number is not finite), and as
    `<name>/<key>` to `behaviour.jsonl` in `trainer.log_dir`, which `read_records` reads.

    Args:
        measures: by name: the model in, numbers by key out. `CompletionLoss`, `PreferenceScore` and `RolloutScore`
            are such, and so is any function.
        schedule: at which updates to measure.
        path: the record file, if not in the output folder.
        on_error: "warn" once and go on when a measure fails, or "raise".
        total_steps: updates of the run, where the trainer does not know.

    Raises:
        TypeError, ValueError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """
