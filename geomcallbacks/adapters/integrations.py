"""How a row of ours gets to each tracker that Transformers knows, and leaves its rows of the loss as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from geomcallbacks.adapters.tracker import Row, TrackerQueue, wandb_histograms


def deliver(
    row: Row,
    trackers: Sequence[TrainerCallback],
    queue: TrackerQueue,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
) -> None:
    """Give each tracker among the callbacks a row, once, whatever the number of callbacks that write to it.

    Where there are no callbacks, since a loop of one's own calls ours, W&B's open run is known all the same.
    """
    if not trackers:
        if "wandb" in (named := args.report_to or ()):
            _submit_to_wandb(row, state.global_step, queue)
        if others := sorted({*named} - {"wandb", "none"}):
            text = (
                f"no Trainer calls this callback, so that {', '.join(others)} get no rows of geometry: log the records"
            )
            queue.warn("no trainer", text)
    served: set[Any] = set()
    for tracker in trackers:
        kind = next((kind for kind in INTEGRATION_TO_CALLBACK.values() if isinstance(tracker, kind)), None)
        # Of TensorBoard each folder is a curve of its own.
        place = getattr(getattr(tracker, "tb_writer", None), "log_dir", kind)
        if kind is None or place in served:
            continue
        served.add(place)
        if kind is WandbCallback:
            _submit_to_wandb(row, state.global_step, queue)
        elif kind is TensorBoardCallback:
            if (writer := tracker.tb_writer) is not None:
                queue.submit("TensorBoard", partial(_log_tensorboard, writer, row.values, state.global_step))
        else:  # here and now: some, such as MLflow, keep their run in the thread that started it
            own = _OWN_STEPS.get(kind.__name__)
            call = partial(own, tracker, row.values, state.global_step) if own is not None else None
            # Through the integration's own hook, not through what a subclass of it does besides.
            call = call or partial(kind.on_log, tracker, args, state, control, logs=dict(row.values))
            queue.call(kind.__name__.removesuffix("Callback"), call)


def _submit_to_wandb(row: Row, step: int, queue: TrackerQueue) -> None:
    import wandb

    if wandb.run is not None:
        queue.submit("W&B", partial(_log_wandb, wandb.run, row, step))


def _log_wandb(run: Any, row: Row, step: int) -> None:
    # No step=: W&B drops rows that go back. train/global_step is the x axis of the loss.
    run.log({**row.values, **wandb_histograms(row.spectra), "train/global_step": step})


def _log_tensorboard(writer: Any, values: Mapping[str, float], step: int) -> None:
    for key, value in values.items():
        writer.add_scalar(key, value, step)


def _dvclive(tracker: Any, values: Mapping[str, float], step: int) -> None:
    """Log at the present step of DVCLive's own: its callback would count a step for our row, and shift the loss."""
    for key, value in values.items():
        tracker.live.log_metric(key, value)


def _trackio(tracker: Any, values: Mapping[str, float], step: int) -> None:
    """Log beside the latest row: trackio counts rows where it is given no step, and would shift the loss."""
    from trackio.context_vars import current_run  # type: ignore[import-not-found]

    run = current_run.get()
    after = run._next_step
    run.log({**values, "train/global_step": step}, step=max(after - 1, 0))
    run._next_step = after


#: Trackers that count steps of their own, by their callback.
_OWN_STEPS = {"DVCLiveCallback": _dvclive, "TrackioCallback": _trackio}
