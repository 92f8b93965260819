"""What every callback of ours under `transformers.Trainer` shares: its hooks, its step, and where its rows go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

from geomcallbacks.adapters.tracker import TrackerQueue
from geomcallbacks.running.base import RunMonitor


@dataclass(frozen=True)
class Row:
    """What one measurement gives to the trackers.

    Attributes:
        values: by their full key; goes to `state.log_history` and to every tracker.
        printed: the lines of the terminal, each a part of `values`.
        wandb_only: what W&B is given besides; called only where a W&B run is open.
        said: sentences for the terminal.
    """

    values: Mapping[str, float]
    printed: Sequence[Mapping[str, float]]
    wandb_only: Callable[[], Mapping[str, Any]] = dict
    said: Sequence[str] = ()


class MonitorCallback(TrainerCallback):
    """Drives a monitor by the Trainer's hooks: at update 0, after each update, and at the last. Subclasses say what is
    measured (`_measured`) and how the record file is called in `args.output_dir` where the monitor names none (`file`).
    """

    file: str

    def __init__(self, monitor: RunMonitor) -> None:
        self._driven = monitor
        self._default_path = monitor.path is None
        self._queue = TrackerQueue()
        self._trackers: list[TrainerCallback] = []
        self._siblings: list[TrainerCallback] = []
        self._told_to_end = False

    def _measured(self, state: TrainerState, model: nn.Module, tokens: int | None, last: bool) -> Row | None:
        """Measure if it is due after `state.global_step` updates; None where nothing was measured."""
        raise NotImplementedError

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check arguments and model, and measure update 0, or that of a checkpoint whose measurement is missing."""
        self._siblings = _siblings()
        for other in self._siblings:
            if isinstance(other, MonitorCallback) and other is not self and other._mark == self._mark:
                raise ValueError(
                    f"two callbacks measure {self._driven.key}, and a checkpoint could not tell them apart: label their"
                    " probes differently"
                )
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        self._trackers = [callback for callback in self._siblings if isinstance(callback, kinds)]
        monitor = self._driven
        if self._default_path and args.output_dir is not None:
            monitor.path = Path(args.output_dir) / self.file
        monitor.ending, self._told_to_end = self._is_ending, False
        monitor.run_id = monitor.spent = None
        known = state.stateful_callbacks.get(self._mark)  # of a resumed run
        if known and state.global_step > 0:
            monitor.load_state_dict({"step": state.global_step} | known["attributes"])
        with _autocast(args):
            monitor.start(kwargs["model"], step=state.global_step, total_steps=state.max_steps)
        self._keep(state)
        # Update 0; of a resumed run, the update of its checkpoint where the end came before its measurement.
        self._step(args, state, control, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is due after this update."""
        # Trainer tells nobody of SIGTERM: with `enable_jit_checkpoint` it saves, and stops before the last update.
        stops_early = control.should_training_stop and state.global_step < state.max_steps
        self._told_to_end = stops_early and any(getattr(s, "jit_manager", None) for s in self._siblings)
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
        self._driven.close()

    def _step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        counted = args.include_num_input_tokens_seen not in (False, "no")
        tokens = int(state.num_input_tokens_seen) if counted else None
        # Whether the process ends is known to each by itself, and what is due must be the same for all.
        last = control.should_training_stop and not self._is_ending()
        with _autocast(args):
            row = self._measured(state, model, tokens, last)
        self._keep(state)
        if row is not None and row.values:
            self._log(args, state, control, row)
        if control.should_training_stop:  # trackers close in their own on_train_end, which comes before ours
            self._queue.flush()

    def _keep(self, state: TrainerState) -> None:
        """Put into each checkpoint's trainer_state.json in which record file, and on what budget, the run goes on."""
        state.stateful_callbacks[self._mark] = {"args": {}, "attributes": self._driven.state_dict()}

    @property
    def _mark(self) -> str:
        return f"geomcallbacks {self._driven.key}"

    def _log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, row: Row) -> None:
        # Never through Trainer.log or the handler's on_log: they would swallow the loss row of this step.
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        state.log_history.append({**row.values, **epoch, "step": state.global_step})
        if not state.is_world_process_zero:
            return
        for line in row.printed:
            # In the manner of Trainer's own rows.
            _print(str({key: f"{value:.4g}" for key, value in {**line, **epoch}.items()}), args)
        for sentence in row.said:
            _print(sentence, args)
        for tracker in self._trackers:
            if isinstance(tracker, WandbCallback):
                self._log_wandb(row, state.global_step)
            elif isinstance(tracker, TensorBoardCallback):
                self._log_tensorboard(tracker, row.values, state.global_step)
            else:  # here and now: some, such as MLflow, keep their run in the thread that started it
                call = partial(tracker.on_log, args, state, control, logs=dict(row.values))
                self._queue.call(type(tracker).__name__, call)

    def _is_ending(self) -> bool:
        """Whether SIGTERM has come, as far as Trainer knows."""
        managers = [getattr(sibling, "jit_manager", None) for sibling in self._siblings]
        return self._told_to_end or any(manager is not None and manager.is_checkpoint_requested for manager in managers)

    def _log_wandb(self, row: Row, step: int) -> None:
        import wandb

        run = wandb.run
        if run is None:
            return
        # No step=: W&B drops rows that go back. train/global_step is the x axis of the loss.
        payload = {**row.values, **row.wandb_only(), "train/global_step": step}
        self._queue.submit("W&B", lambda: run.log(payload))

    def _log_tensorboard(self, tracker: TensorBoardCallback, values: Mapping[str, float], step: int) -> None:
        writer = tracker.tb_writer
        if writer is None:
            return

        def write() -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        self._queue.submit("TensorBoard", write)


def _siblings() -> list[TrainerCallback]:
    """The callbacks of the Trainer that is calling us.

    A callback is given no Trainer and no siblings, yet TensorBoard's open writer is known to its callback alone, and
    that the process has been told to end to another: they are found through the handler further up the stack.
    """
    frame = sys._getframe(1)
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler):
            return list(handler.callbacks)
        frame = frame.f_back  # type: ignore[assignment]
    return []


def _autocast(args: TrainingArguments) -> AbstractContextManager[Any]:
    """The autocast that accelerate puts around the model's own forward, since the backbone is called without it.

    There is none under FSDP2 and DeepSpeed, whose own policies say what is computed in which dtype.
    """
    state = AcceleratorState()
    if state.is_fsdp2 or state.distributed_type == DistributedType.DEEPSPEED:
        return nullcontext()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}.get(state.mixed_precision)
    return nullcontext() if dtype is None else torch.autocast(args.device.type, dtype=dtype)


def _print(line: str, args: TrainingArguments) -> None:
    print(line) if args.disable_tqdm else tqdm.write(line)
