"""A hundred thousand updates and two thousand measurements: what a run holds on to must not grow with its length.

The quick tests do a twentieth of it. Memory is told twice: by the tensors that are alive, which must be as many at the
end as after the first tenth, and by the process's resident memory.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
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

from geomcallbacks import GeometryMonitor, PhaseTracker, Schedule, read_records
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss, Completions
from geomcallbacks.hf import GeometryCallback

EVERY = 50
SCHEDULE = Schedule(every=EVERY, per_decade=0)
#: Updates of the quick half, which `make test` runs, and of the whole.
LENGTHS = pytest.mark.parametrize("updates", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
#: MiB by which resident memory may grow between the first tenth and the end: 0.5 and 0.8 were measured. A matrix of
#: features (64 x 16, float64) kept at each of 1,800 measurements would be 14.
GROWTH = 6.0


def held(model: nn.Module) -> tuple[float, int, tuple[int, int, int]]:
    """What the process holds on to: resident MiB, tensors, and (hooks, descriptors, threads)."""
    gc.collect()
    process = psutil.Process()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return process.memory_info().rss / 2**20, tensors, (hooks, process.num_fds(), process.num_threads())


def check_flat(model: nn.Module, updates: int, step: Callable[[int], object]) -> None:
    """No more is held after all updates than after a tenth of them."""
    for update in range(1, updates + 1):
        step(update)
        if update == updates // 10:
            early, early_tensors, early_others = held(model)
    late, late_tensors, late_others = held(model)
    assert late_others == early_others
    assert late_tensors <= early_tensors
    assert late - early < GROWTH


def check_files(path: Path, updates: int) -> None:
    """Every measurement stands in the file, which is read within a second, and has its spectrum; no scratch file."""
    begin = time.perf_counter()
    records = read_records(path)
    assert time.perf_counter() - begin < 1.0
    steps = list(range(0, updates + 1, EVERY))
    assert [record["step"] for record in records] == steps
    spectra = sorted(file.name for file in path.with_name("geometry-spectra").iterdir())
    assert spectra == [f"step-{step:09d}.safetensors" for step in steps]


@pytest.mark.fault
@LENGTHS
def test_monitors_hold_no_more_at_the_end(updates: int, tmp_path: Path) -> None:
    model = tiny.model()
    run = {"schedule": SCHEDULE, "total_steps": updates}
    geometry = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, path=tmp_path / "geometry.jsonl", **run)
    loss = CompletionLoss(Completions([[5, 6]] * 4, [[7, 8, 9]] * 4))
    behaviour = BehaviourMonitor({"held_out": loss}, path=tmp_path / "behaviour.jsonl", **run)
    geometry.step(model, 0)
    behaviour.step(model, 0)
    check_flat(model, updates, lambda update: (geometry.step(model, update), behaviour.step(model, update)))
    geometry.close()
    behaviour.close()
    check_files(tmp_path / "geometry.jsonl", updates)
    assert len(read_records(tmp_path / "behaviour.jsonl")) == updates // EVERY + 1


@pytest.mark.fault
@LENGTHS
def test_a_callback_with_a_tracker_holds_no_more_at_the_end(updates: int, tmp_path: Path) -> None:
    model = tiny.model()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no")
    Accelerator(cpu=True)  # as Trainer makes one; TrainingArguments have reset what there was
    callback = GeometryCallback(tiny.probe(), **tiny.watching(schedule=SCHEDULE))
    handler = CallbackHandler([DefaultFlowCallback(), TensorBoardCallback(), callback], model, None, None, None)
    state, control = TrainerState(max_steps=updates), TrainerControl()

    def step(update: int) -> None:
        state.global_step = update
        control.should_training_stop = update == updates
        handler.on_step_end(args, state, control)

    handler.on_train_begin(args, state, control)
    check_flat(model, updates, step)
    handler.on_train_end(args, state, control)
    check_files(tmp_path / "geometry.jsonl", updates)
    assert [row["step"] for row in state.log_history] == list(range(0, updates + 1, EVERY))


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


def test_failures_whose_messages_differ_are_one_kind() -> None:
    """A run whose every measurement fails warns, and remembers having warned, once and not for each of them."""

    def fails(model: nn.Module, ids_bt: torch.Tensor, mask_bt: torch.Tensor) -> None:
        if armed:
            raise RuntimeError(f"no {torch.rand(()).item()}")
        model(input_ids=ids_bt, attention_mask=mask_bt)

    armed: list[bool] = []
    model = tiny.model()
    monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, forward=fails, module="gpt_neox.final_layer_norm")
    monitor.start(model)
    armed.append(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [monitor.measure(model, step) for step in range(40)] == [[]] * 40
    assert len(caught) == 1
