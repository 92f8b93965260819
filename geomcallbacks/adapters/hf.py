"""What every callback of ours under `transformers.Trainer` shares: its hooks, its step, and where its rows go."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from geomcallbacks.adapters.callback import Monitored
from geomcallbacks.adapters.integrations import deliver
from geomcallbacks.adapters.siblings import calling_handler
from geomcallbacks.adapters.tracker import Row
from geomcallbacks.reading.weights import held_by_optimizers
from geomcallbacks.running.messages import show
from geomcallbacks.running.processes import announce


class MonitorCallback(Monitored, TrainerCallback):
    """Drive a monitor by the Trainer's hooks: at update 0, after each update, and at the last.

    The record file lies in `args.output_dir`, where the monitor was given none.
    """

    _siblings: Sequence[TrainerCallback] = ()
    _stopped_by_signal = False
    _latest: tuple[int, Row] | None = None  # the row of the latest measurement, and its update
    _evaluated = -1, ""  # an update, and which of several data sets was evaluated first then
    _batch_size = 0  # with which the run has begun
    _held: tuple[int, Row] | None = None  # a row from before training, for trackers that open in a hook behind ours

    def __getstate__(self) -> dict[str, Any]:
        """Leave the Trainer's other callbacks behind, and what is of a run."""
        return vars(self) | {"_siblings": (), "_latest": None, "_held": None}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let the other processes know of us: other callbacks may keep one from training for a while."""
        announce()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check arguments and model, and measure update 0, or that of a checkpoint whose measurement is missing."""
        if kwargs.get("model") is None:
            raise ValueError("on_train_begin was called without model=: pass the model, as transformers.Trainer does")
        handler = calling_handler()
        self._siblings = () if handler is None else list(handler.callbacks)
        self._stopped_by_signal, self._latest, self._held, self._evaluated = False, None, None, (-1, "")
        self._check_siblings()
        # Trainer has run out of memory, and begins again with a smaller batch.
        smaller = (state.train_batch_size or 0) < self._batch_size  # else an interrupted run, and then another one
        again = args.auto_find_batch_size and smaller and self.monitor.running and state.global_step == 0
        self._batch_size = state.train_batch_size or 0
        known = state.stateful_callbacks.get(self._state_key) if state.global_step > 0 else None  # of a resumed run
        with _autocast(args):
            self.monitor.start(
                kwargs["model"],
                step=state.global_step,
                total_steps=state.max_steps,
                path=None if args.output_dir is None else Path(args.output_dir) / self._file,
                ending=self._is_ending,
                state={"step": state.global_step} | known["attributes"] if known else None,
                again=again,
                driven=True,
                header=_trial_of(state),
                weights=partial(held_by_optimizers, [kwargs.get("optimizer")]),
            )
        self._refuse_shared_keys(self._siblings)
        self._refuse_unknown("metric_for_best_model", _best_by(args), self._siblings)
        if self._watched(args) and handler is not None:
            _move_ahead(handler.callbacks, self)
        self._measure_if_due(args, state, control, kwargs["model"], hold=True)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log what was measured before training: by now every tracker is open."""
        self._log_held(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is due after this update."""
        if not self.monitor.running:  # added to a run, or called by another Trainer's in between
            self.on_train_begin(args, state, control, **kwargs)
        # Trainer tells nobody of SIGTERM: with `enable_jit_checkpoint` it saves, and stops before the last update.
        stops_early = control.should_training_stop and state.global_step < state.max_steps
        if stops_early and any(getattr(sibling, "jit_manager", None) for sibling in self._siblings):
            self._stopped_by_signal = True
        self._measure_if_due(args, state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last update of a run that an evaluation has stopped early."""
        if control.should_training_stop:
            self._measure_if_due(args, state, control, kwargs["model"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add `eval_<key>` of the present weights, where `metric_for_best_model` names a number of ours.

        Trainer raises where it is missing: what could not be measured is NaN, which is never the best.
        """
        wanted = self._watched(args)
        if metrics is None or wanted is None or not self.monitor.running:
            return
        # As with a loss, one of several data sets decides: EarlyStoppingCallback would count each of them.
        among = next((key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")), "eval")
        if among != "eval":
            first = self._evaluated[1] if self._evaluated[0] == state.global_step else among
            if not among.startswith("eval_") or among != first:
                return
            self._evaluated = state.global_step, among
        if self._latest is None or self._latest[0] != state.global_step:
            with _autocast(args):
                found = self.monitor.measure(kwargs["model"], state.global_step)
            self._keep(args, state, control, found)
        values = self._latest[1].values if self._latest is not None and self._latest[0] == state.global_step else {}
        metrics.update({f"eval_{key}": value for key, value in {wanted: math.nan, **values}.items()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the record file. Nothing is measured: the best checkpoint may have been loaded by now."""
        self._log_held(args, state, control)
        self._queue.close()
        self.monitor.close()

    def _measure_if_due(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        hold: bool = False,
    ) -> None:
        counted = args.include_num_input_tokens_seen not in (False, "no")
        tokens = int(state.num_input_tokens_seen) if counted else None
        # SIGTERM may make Trainer stop on this rank alone, and what is due must be the same for all: such a stop is no
        # last update. An evaluation that stops early does so on all ranks.
        last = control.should_training_stop and not self._is_ending()
        with _autocast(args):
            found = self.monitor.step(model, state.global_step, tokens=tokens, last=last)
        self._keep(args, state, control, found, hold)
        if control.should_training_stop:  # trackers close in their own on_train_end, which comes before ours
            self._queue.flush()

    def _keep(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, found: Any, hold: bool = False
    ) -> None:
        """Keep the state of the run for its checkpoints, and log what was found or has failed, or hold it back."""
        state.stateful_callbacks[self._state_key] = {"args": {}, "attributes": self.monitor.state_dict()}
        if not found and not self.monitor.failed:
            return
        row = self._make_row(self.monitor, found)
        self._latest = state.global_step, row
        # Never through Trainer.log or the handler's on_log: they would swallow the loss row of this step.
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        if row.values:
            state.log_history.append({**row.values, **epoch, "step": state.global_step})
        if not state.is_world_process_zero:
            return
        lines = [str({key: f"{value:.4g}" for key, value in {**line, **epoch}.items()}) for line in row.printed]
        for line in (*lines, *row.sentences):  # in the manner of Trainer's own rows
            show(line, print if args.disable_tqdm else tqdm.write)
        self._log_held(args, state, control)
        self._held = self._latest
        if not hold:
            self._log_held(args, state, control)

    def _log_held(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Give the trackers the row that is held back, if any."""
        if self._held is not None:
            (step, row), self._held = self._held, None
            of_then = state
            if step != state.global_step:
                of_then = copy.copy(state)
                of_then.global_step = step
            deliver(row, self._siblings, self._queue, args, of_then, control)

    def _watched(self, args: TrainingArguments) -> str | None:
        """Return the number of ours by which Trainer chooses its best model, or EarlyStoppingCallback stops."""
        return wanted if self._logs(wanted := _best_by(args)) else None

    def _check_siblings(self) -> None:
        for other in self._siblings:
            if isinstance(other, MonitorCallback) and other is not self and other._state_key == self._state_key:
                raise ValueError(
                    f"two callbacks measure {self.monitor.key}, and a checkpoint could not tell them apart: label their"
                    " probes differently"
                )

    @property
    def _state_key(self) -> str:
        return f"geomcallbacks {self.monitor.key}"

    def _is_ending(self) -> bool:
        """Whether SIGTERM has come, as far as Trainer knows: it forgets once it has saved, and we do not."""
        managers = [getattr(sibling, "jit_manager", None) for sibling in self._siblings]
        if any(manager is not None and manager.is_checkpoint_requested for manager in managers):
            self._stopped_by_signal = True
        return self._stopped_by_signal


def _trial_of(state: TrainerState) -> dict[str, Any]:
    """Return which trial of a hyper-parameter search this run is, in what JSON holds."""
    if not state.is_hyper_param_search:
        return {}
    params = {
        key: value if isinstance(value, int | str) else str(value) for key, value in (state.trial_params or {}).items()
    }
    return {"trial": {"name": str(state.trial_name), "params": params}}


def _best_by(args: TrainingArguments) -> str:
    return (args.metric_for_best_model or "").removeprefix("eval_")


def _move_ahead(callbacks: list[TrainerCallback], own: TrainerCallback) -> None:
    """Put `own` before the first that reads what `on_evaluate` is handed.

    None is passed over or called twice by the loop over these callbacks that has just reached `own`.
    """
    readers = (place for place, other in enumerate(callbacks) if isinstance(other, EarlyStoppingCallback))
    place, now = next(readers, len(callbacks)), callbacks.index(own)
    if place < now:
        callbacks.insert(place, callbacks.pop(now))


def _autocast(args: TrainingArguments) -> AbstractContextManager[Any]:
    """Return the autocast that accelerate puts around the model's own forward: the backbone is called without it.

    There is none under FSDP2 and DeepSpeed, whose own policies say what is computed in which dtype.
    """
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    if AcceleratorState._shared_state:  # else a loop of one's own, without accelerate
        state = AcceleratorState()
        if state.is_fsdp2 or state.distributed_type == DistributedType.DEEPSPEED:
            return nullcontext()
        precision = state.mixed_precision
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast(args.device.type, dtype=dtype)
