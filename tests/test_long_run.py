"""A hundred thousand updates and two thousand measurements: what a run holds on to must not grow with its length.

The quick tests do a twentieth of it. Memory is told twice: by the tensors that are alive, which must be as many at the
end as after the first tenth, and by the process's resident memory.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import psutil
import pytest
import tiny
import torch
from accelerate import Accelerator
from torch import nn
from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler

from geomcallbacks import PhaseTracker, Schedule, read_records
from geomcallbacks.behaviour import CompletionLoss, Completions
from geomcallbacks.behaviour.hf import BehaviourCallback
from geomcallbacks.hf import GeometryCallback

EVERY = 50
SCHEDULE = Schedule(every=EVERY, per_decade=0)
#: MiB by which resident memory may grow between the first tenth and the end: 3.7 were measured, with Trainer's own log
#: of our rows. A matrix of features (64 x 16, float64) kept at each of 1,800 measurements would be 14.
GROWTH = 6.0


def held(model: nn.Module) -> tuple[float, int, tuple[int, int, int]]:
    """What the process holds on to: resident MiB, tensors, and (hooks, descriptors, threads)."""
    gc.collect()
    process = psutil.Process()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return process.memory_info().rss / 2**20, tensors, (hooks, process.num_fds(), process.num_threads())


@pytest.mark.fault
@pytest.mark.parametrize("updates", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_callbacks_with_a_tracker_hold_no_more_at_the_end(updates: int, tmp_path: Path) -> None:
    """Than after a tenth of the updates. Every measurement stands in the file, which is read within a second."""
    model = tiny.model()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no")
    Accelerator(cpu=True)  # as Trainer makes one; TrainingArguments have reset what there was
    geometry = GeometryCallback(tiny.probe(), **tiny.watching(schedule=SCHEDULE))
    loss = CompletionLoss(Completions([[5, 6]] * 4, [[7, 8, 9]] * 4))
    behaviour = BehaviourCallback({"held_out": loss}, schedule=SCHEDULE, on_error="raise")
    callbacks = [DefaultFlowCallback(), TensorBoardCallback(), geometry, behaviour]
    handler = CallbackHandler(callbacks, model, None, None, None)
    state, control = TrainerState(max_steps=updates), TrainerControl()

    handler.on_train_begin(args, state, control)
    for update in range(1, updates + 1):
        state.global_step = update
        control.should_training_stop = update == updates
        handler.on_step_end(args, state, control)
        if update == updates // 10:
            early, early_tensors, early_others = held(model)
    late, late_tensors, late_others = held(model)
    assert late_others == early_others
    assert late_tensors <= early_tensors
    assert late - early < GROWTH
    handler.on_train_end(args, state, control)

    begin = time.perf_counter()
    records = read_records(tmp_path / "geometry.jsonl")
    assert time.perf_counter() - begin < 1.0
    steps = list(range(0, updates + 1, EVERY))
    assert [record["step"] for record in records] == steps
    assert [record["step"] for record in read_records(tmp_path / "behaviour.jsonl")] == steps
    assert [row["step"] for row in state.log_history if "geometry/rankme" in row] == steps
    spectra = sorted(file.name for file in (tmp_path / "geometry-spectra").iterdir())  # no scratch file
    assert spectra == [f"step-{step:09d}.safetensors" for step in steps]


def test_the_search_for_phases_does_not_grow_with_the_square_of_the_curve() -> None:
    """A search through all pairs of points takes a hundred times as long on ten times as many."""

    def seconds(points: int) -> float:
        curve = PhaseTracker()
        curve.load([(step, 5.0 + step % 7) for step in range(points)])
        begin = time.perf_counter()
        for step in range(points, points + 5):
            curve.add(step, 5.0 + step % 7)
        return time.perf_counter() - begin

    assert min(seconds(20_000) for _ in range(3)) < 20 * min(seconds(2_000) for _ in range(3))
