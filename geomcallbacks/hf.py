"""GeometryCallback for `transformers.Trainer` and every TRL trainer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerState

from geomcallbacks.adapters.hf import MonitorCallback, Row
from geomcallbacks.adapters.tracker import wandb_spectra
from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.probe import ProbeSet

_PRINTED = ("rankme", "alpha_req", "top1_share")  # a row of ten is not read


class GeometryCallback(MonitorCallback):
    """Measures geometry while a Trainer trains, and logs it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry/<metric>` (one probe and one
    layer; else `geometry/<probe>/<layer>/<metric>`) to W&B and TensorBoard against the loss's own x axis, to
    `state.log_history`, to the terminal, and to `geometry.jsonl` in `args.output_dir`. Any other tracker that
    `report_to` names is handed the row through its own callback, which prefixes `train/` as it does to the loss.
    Among them is `phase`: 0, 1, 2 (`geomcallbacks.phases`); the terminal says in words when another one begins.

    Args:
        probe: one ProbeSet, or several by label.
        **settings: those of `GeometryMonitor`.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """

    file = "geometry.jsonl"

    def __init__(self, probe: ProbeSet | dict[str, ProbeSet], **settings: Any) -> None:
        self.monitor = GeometryMonitor(probe, **settings)
        super().__init__(self.monitor)

    def _measured(self, state: TrainerState, model: nn.Module, tokens: int | None, last: bool) -> Row | None:
        monitor = self.monitor
        records = monitor.step(model, state.global_step, tokens=tokens, last=last)
        if not records:
            return None
        printed = [
            {key: value for key, value in monitor.log_row([record]).items() if key.rpartition("/")[2] in _PRINTED}
            for record in records
        ]
        spectra = lambda: wandb_spectra(monitor, records)
        return Row(monitor.log_row(records), printed, spectra, monitor.transitions)
