"""What every callback of ours under `transformers.Trainer` shares: its hooks, its step, and where its rows go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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

from geomcallbacks.adapters.callback import Monitored
from geomcallbacks.adapters.siblings import siblings
from geomcallbacks.adapters.tracker import Row, wandb_histograms
from geomcallbacks.reading.weights import held_by_optimizers


class MonitorCallback(Monitored, TrainerCallback):
    """Drive a monitor by the Trainer's hooks: at update 0, after each update, and at the last.

    The record file lies in `args.output_dir`, where the monitor was given none.
    """

    _siblings: Sequence[TrainerCallback] = ()
    _stopped_by_signal = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check arguments and model, and measure update 0, or that of a checkpoint whose measurement is missing."""
        self._siblings, self._stopped_by_signal = siblings(), False
        for other in self._siblings:
            if isinstance(other, MonitorCallback) and other is not self and other._state_key == self._state_key:
                raise ValueError(
                    f"two callbacks measure {self.monitor.key}, and a checkpoint could not tell them apart: label their"
                    " probes differently"
                )
        known = state.stateful_callbacks.get(self._state_key) if state.global_step > 0 else None  # of a resumed run
        with _autocast(args):
            self.monitor.start(
                kwargs["model"],
                step=state.global_step,
                total_steps=state.max_steps,
                path=None if args.output_dir is None else Path(args.output_dir) / self._file,
                ending=self._is_ending,
                state={"step": state.global_step} | known["attributes"] if known else None,
                weights=partial(held_by_optimizers, [kwargs.get("optimizer")]),
            )
        self._keep_state(state)
        self._step(args, state, control, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is due after this update."""
        # Trainer tells nobody of SIGTERM: with `enable_jit_checkpoint` it saves, and stops before the last update.
        stops_early = control.should_training_stop and state.global_step < state.max_steps
        if stops_early and any(getattr(sibling, "jit_manager", None) for sibling in self._siblings):
            self._stopped_by_signal = True
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
        # SIGTERM may make Trainer stop on this rank alone, and what is due must be the same for all: such a stop is no
        # last update. An evaluation that stops early does so on all ranks.
        last = control.should_training_stop and not self._is_ending()
        with _autocast(args):
            found = self.monitor.step(model, state.global_step, tokens=tokens, last=last)
        self._keep_state(state)
        if found:
            self._log(args, state, control, self._make_row(self.monitor, found))
        if control.should_training_stop:  # trackers close in their own on_train_end, which comes before ours
            self._queue.flush()

    def _keep_state(self, state: TrainerState) -> None:
        """Keep the record file and the budget of the run in each checkpoint's trainer_state.json."""
        state.stateful_callbacks[self._state_key] = {"args": {}, "attributes": self.monitor.state_dict()}

    @property
    def _state_key(self) -> str:
        return f"geomcallbacks {self.monitor.key}"

    def _is_ending(self) -> bool:
        """Whether SIGTERM has come, as far as Trainer knows: it forgets once it has saved, and we do not."""
        managers = [getattr(sibling, "jit_manager", None) for sibling in self._siblings]
        if any(manager is not None and manager.is_checkpoint_requested for manager in managers):
            self._stopped_by_signal = True
        return self._stopped_by_signal

    def _log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, row: Row) -> None:
        if not row.values:
            return
        # Never through Trainer.log or the handler's on_log: they would swallow the loss row of this step.
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        state.log_history.append({**row.values, **epoch, "step": state.global_step})
        if not state.is_world_process_zero:
            return
        lines = [str({key: f"{value:.4g}" for key, value in {**line, **epoch}.items()}) for line in row.printed]
        for line in (*lines, *row.sentences):  # in the manner of Trainer's own rows
            print(line) if args.disable_tqdm else tqdm.write(line)
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        for tracker in self._siblings:
            if isinstance(tracker, WandbCallback):
                self._log_wandb(row, state.global_step)
            elif isinstance(tracker, TensorBoardCallback):
                self._log_tensorboard(tracker, row.values, state.global_step)
            elif isinstance(tracker, kinds):
                # Here and now: some, such as MLflow, keep their run in the thread that started it.
                call = partial(tracker.on_log, args, state, control, logs=dict(row.values))
                self._queue.call(type(tracker).__name__, call)

    def _log_wandb(self, row: Row, step: int) -> None:
        import wandb

        run = wandb.run
        if run is None:
            return
        # No step=: W&B drops rows that go back. train/global_step is the x axis of the loss.
        payload = {**row.values, **wandb_histograms(row.spectra), "train/global_step": step}
        self._queue.submit("W&B", lambda: run.log(payload))

    def _log_tensorboard(self, tracker: TensorBoardCallback, values: Mapping[str, float], step: int) -> None:
        writer = tracker.tb_writer
        if writer is None:
            return

        def write() -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        self._queue.submit("TensorBoard", write)


def _autocast(args: TrainingArguments) -> AbstractContextManager[Any]:
    """Return the autocast that accelerate puts around the model's own forward: the backbone is called without it.

    There is none under FSDP2 and DeepSpeed, whose own policies say what is computed in which dtype.
    """
    state = AcceleratorState()
    if state.is_fsdp2 or state.distributed_type == DistributedType.DEEPSPEED:
        return nullcontext()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}.get(state.mixed_precision)
    return nullcontext() if dtype is None else torch.autocast(args.device.type, dtype=dtype)
