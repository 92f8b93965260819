"""BehaviourCallback for `transformers.Trainer` and every TRL trainer."""

from __future__ import annotations

from geomcallbacks.adapters.hf import MonitorCallback
from geomcallbacks.behaviour.monitor import BehaviourArguments


class BehaviourCallback(BehaviourArguments, MonitorCallback):
    """Measure what a model does while a Trainer trains, and log it beside loss and geometry.

    At update 0, at the scheduled updates and at the last, each number goes as `behaviour/<name>/<key>` to W&B and
    TensorBoard against the loss's own x axis, to `state.log_history`, to the terminal, and as `<name>/<key>` to
    `behaviour.jsonl` in `args.output_dir`, which `read_records` reads. Numbers that are not finite are `null` there,
    and logged nowhere else.

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
