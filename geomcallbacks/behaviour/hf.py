"""BehaviourCallback for `transformers.Trainer` and every TRL trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import TrainerState

from geomcallbacks.adapters.hf import MonitorCallback, Row
from geomcallbacks.behaviour.monitor import BehaviourMonitor, Measure
from geomcallbacks.schedule import Schedule


class BehaviourCallback(MonitorCallback):
    """Measures what a model does while a Trainer trains, and logs it beside loss and geometry.

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

    Raises:
        TypeError, ValueError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """

    file = "behaviour.jsonl"

    def __init__(
        self,
        measures: Mapping[str, Measure],
        *,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        path: str | Path | None = None,
        on_error: str = "warn",
    ) -> None:
        self.monitor = BehaviourMonitor(measures, schedule=schedule, path=path, on_error=on_error)
        super().__init__(self.monitor)

    def _measured(self, state: TrainerState, model: nn.Module, tokens: int | None, last: bool) -> Row | None:
        found = self.monitor.step(model, state.global_step, last=last)
        values = {f"behaviour/{key}": value for key, value in found.items() if value is not None}
        if not values:
            return None
        names = [f"behaviour/{name}/" for name in self.monitor.measures]
        lines = [{key: value for key, value in values.items() if key.startswith(name)} for name in names]
        return Row(values, [line for line in lines if line])
