"""GeometryCallback for `transformers.Trainer` and every TRL trainer: hooks, step, loggers, and nothing else."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.probe import ProbeSet
from geomcallbacks.record import GeometryRecord
from geomcallbacks.tracker import TrackerQueue, wandb_spectra

_PRINTED = ("rankme", "alpha_req", "top1_share", "epoch")


class GeometryCallback(TrainerCallback):
    """Measures geometry while a Trainer trains, and logs it beside the loss.

    At update 0, at the scheduled updates and at the last, each metric goes as `geometry/<metric>` (one probe and one
    layer; else `geometry/<probe>/<layer>/<metric>`) to W&B and TensorBoard against the loss's own x axis, to
    `state.log_history`, to the terminal, and to `geometry.jsonl` in `args.output_dir`. Any other tracker that
    `report_to` names is handed the row through its own callback, which prefixes `train/` as it does to the loss.

    Args:
        probe: one ProbeSet, or several by label.
        **settings: those of `GeometryMonitor`.

    Raises:
        ValueError, TypeError: at construction, for arguments that are wrong by themselves; when training begins, for
            those that do not fit the model.
    """

    def __init__(self, probe: ProbeSet | dict[str, ProbeSet], **settings: Any) -> None:
        self.monitor = GeometryMonitor(probe, **settings)
        self._default_path = settings.get("path") is None
        self._queue = TrackerQueue()
        self._trackers: list[TrainerCallback] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check probe and model, and measure update 0 of a run that is not resumed."""
        self._trackers = _tracking_siblings()
        if self._default_path and args.output_dir is not None:
            self.monitor.path = Path(args.output_dir) / "geometry.jsonl"
        mark = f"geomcallbacks {self.monitor.key}"
        known = state.stateful_callbacks.get(mark)  # of a resumed run
        self.monitor.run_id = known["attributes"]["run_id"] if known else None
        with _autocast(args):
            self.monitor.start(kwargs["model"], step=state.global_step, total_steps=state.max_steps)
        # Goes into each checkpoint's trainer_state.json: which record file the run goes on in.
        state.stateful_callbacks[mark] = {"args": {}, "attributes": {"run_id": self.monitor.run_id}}
        if state.global_step == 0:
            self._step(args, state, control, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is due after this update."""
        self._step(args, state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last update of a run that an evaluation has stopped early."""
        if control.should_training_stop:
            self._step(args, state, control, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the record file. Nothing is measured: the best checkpoint may have been loaded by now."""
        self._queue.flush()
        self.monitor.close()

    def _step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        counted = args.include_num_input_tokens_seen not in (False, "no")
        tokens = int(state.num_input_tokens_seen) if counted else None
        last = control.should_training_stop
        with _autocast(args):
            records = self.monitor.step(model, state.global_step, tokens=tokens, last=last)
        if records:
            self._log(args, state, control, records)
        if last:  # trackers close in their own on_train_end, which comes before ours
            self._queue.flush()

    def _log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, records: list[GeometryRecord]
    ) -> None:
        row = self.monitor.log_row(records)
        # Never through Trainer.log or the handler's on_log: they would swallow the loss row of this step.
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        state.log_history.append({**row, **epoch, "step": state.global_step})
        if not state.is_world_process_zero:
            return
        for record in records:
            _print({**self.monitor.log_row([record]), **epoch}, args)
        for tracker in self._trackers:
            if isinstance(tracker, WandbCallback):
                self._log_wandb(row, state.global_step, records)
            elif isinstance(tracker, TensorBoardCallback):
                self._log_tensorboard(tracker, row, state.global_step)
            else:  # here and now: some, such as MLflow, keep their run in the thread that started it
                call = partial(tracker.on_log, args, state, control, logs=dict(row))
                self._queue.call(type(tracker).__name__, call)

    def _log_wandb(self, row: dict[str, float], step: int, records: list[GeometryRecord]) -> None:
        import wandb

        run = wandb.run
        if run is None:
            return
        # No step=: W&B drops rows that go back. train/global_step is the x axis of the loss.
        payload = {**row, **wandb_spectra(self.monitor, records), "train/global_step": step}
        self._queue.submit("W&B", lambda: run.log(payload))

    def _log_tensorboard(self, tracker: TensorBoardCallback, row: dict[str, float], step: int) -> None:
        writer = tracker.tb_writer
        if writer is None:
            return

        def write() -> None:
            for key, value in row.items():
                writer.add_scalar(key, value, step)

        self._queue.submit("TensorBoard", write)


def _tracking_siblings() -> list[TrainerCallback]:
    """The tracker callbacks of the Trainer that is calling us.

    A callback is given no Trainer and no siblings, yet TensorBoard's open writer is known to its callback alone: it is
    found through the handler that stands further up the stack.
    """
    frame = sys._getframe(1)
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler):
            kinds = tuple(INTEGRATION_TO_CALLBACK.values())
            return [callback for callback in handler.callbacks if isinstance(callback, kinds)]
        frame = frame.f_back  # type: ignore[assignment]
    return []


def _autocast(args: TrainingArguments) -> AbstractContextManager[Any]:
    """What `accelerator.autocast()` gives: accelerate wraps the model's own forward only, and the backbone is called
    without it.
    """
    mixed = AcceleratorState().mixed_precision
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}.get(mixed)
    return nullcontext() if dtype is None else torch.autocast(args.device.type, dtype=dtype)


def _print(row: dict[str, float], args: TrainingArguments) -> None:
    """In the manner of Trainer's own rows; three metrics of each curve, since a row of ten is not read."""
    shown = {key: value for key, value in row.items() if key.rpartition("/")[2] in _PRINTED}
    line = str({key: f"{value:.4g}" for key, value in shown.items()})
    print(line) if args.disable_tqdm else tqdm.write(line)
