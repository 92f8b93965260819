"""GeometryCallback for `transformers.Trainer` and every TRL trainer."""

from __future__ import annotations

from geomcallbacks.adapters.callback import GeometryArguments
from geomcallbacks.adapters.hf import MonitorCallback


class GeometryCallback(GeometryArguments, MonitorCallback):
    """Measure geometry while a Trainer trains, and log it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry[/<label>][/<layer>]/<metric>`
    (the label that the probe was given, the layer that is not the last) to W&B and TensorBoard against the loss's own x
    axis, to `state.log_history`, to the terminal, and to `geometry.jsonl` in `args.output_dir`. Any other tracker that
    `report_to` names is handed the row through its own callback, which prefixes `train/` as it does to the loss. With
    `metric_for_best_model="geometry/rankme"` it is measured at each evaluation. Among the metrics is `phase`: 0, 1, 2
    (`geomcallbacks.phases`); the terminal says in words when another one begins.

    Args:
        probe: one ProbeSet, or several by label.
        layers, positions, …: see `geomcallbacks.settings.Settings`, or the README's table.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """
