"""A hundred thousand updates and two thousand measurements: what a run holds on to must not grow with its length.

The quick tests do a twentieth of it. Memory is told twice: by the tensors that are alive, which must be as many at the
end as after the first tenth, and by the process's resident memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
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

from geomcallbacks import GeometryMonitor, Schedule, phases, read_records
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss, Completions
from geomcallbacks.hf import GeometryCallback
from geomcallbacks.running.messages import WarnOnce

EVERY = 50
#: Updates of the quick half, which `make test` runs, and of the whole.
LENGTHS = [5_000, pytest.param(100_000, marks=pytest.mark.slow)]
#: MiB by which resident memory may grow between the first tenth and the end: 0.5 and 0.8 were measured. A matrix of
#: features (64 x 16, float64) kept at each of 1,800 measurements would be 14.
GROWTH = 6.0


@dataclass
class Held:
    """What a process holds on to."""

    tensors: int
    descriptors: int
    threads: int
    hooks: int
    resident: float

    @classmethod
    def by(cls, model: nn.Module) -> Held:
        gc.collect()
        process = psutil.Process()
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        resident = process.memory_info().rss / 2**20
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return cls(tensors, process.num_fds(), process.num_threads(), hooks, resident)


def watched(model: nn.Module, updates: int, step: Callable[[int], object]) -> tuple[Held, Held]:
    """What is held after a tenth of the updates and after all of them."""
    early = None
    for update in range(1, updates + 1):
        step(update)
        if update == updates // 10:
            early = Held.by(model)
    assert early is not None
    return early, Held.by(model)


def check_flat(early: Held, late: Held) -> None:
    assert (late.descriptors, late.threads, late.hooks) == (early.descriptors, early.threads, 0)
    assert late.tensors <= early.tensors
    assert late.resident - early.resident < GROWTH


def check_files(path: Path, updates: int) -> None:
    """Every measurement stands in the file and has its spectrum; no scratch file is left."""
    steps = list(range(0, updates + 1, EVERY))
    assert [record["step"] for record in read_records(path)] == steps
    spectra = sorted(file.name for file in path.with_name("geometry-spectra").iterdir())
    assert spectra == [f"step-{step:09d}.safetensors" for step in steps]


@pytest.mark.fault
@pytest.mark.parametrize("updates", LENGTHS)
def test_a_monitor_holds_no_more_at_the_end_than_near_the_beginning(
    updates: int, tmp_path: Path, tally: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    model = tiny.model()
    schedule = Schedule(every=EVERY, per_decade=0)
    geometry = GeometryMonitor(
        tiny.probe(), alpha_window=tiny.WINDOW, schedule=schedule, path=tmp_path / "geometry.jsonl", total_steps=updates
    )
    rows = Completions([[5, 6]] * 4, [[7, 8, 9]] * 4)
    behaviour = BehaviourMonitor(
        {"held_out": CompletionLoss(rows)}, schedule=schedule, path=tmp_path / "behaviour.jsonl", total_steps=updates
    )
    geometry.step(model, 0)
    behaviour.step(model, 0)
    early, late = watched(model, updates, lambda update: (geometry.step(model, update), behaviour.step(model, update)))
    geometry.close()
    behaviour.close()
    record_property("resident MiB", [early.resident, late.resident])
    check_flat(early, late)
    check_files(tmp_path / "geometry.jsonl", updates)
    assert len(read_records(tmp_path / "behaviour.jsonl")) == updates // EVERY + 1
    tally("long run")


@pytest.mark.fault
@pytest.mark.parametrize("updates", LENGTHS)
def test_a_callback_with_a_tracker_holds_no_more_at_the_end_than_near_the_beginning(
    updates: int, tmp_path: Path, tally: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    model = tiny.model()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no")
    Accelerator(cpu=True)  # as Trainer makes one; TrainingArguments have reset what there was
    callback = GeometryCallback(tiny.probe(), **tiny.watching(schedule=Schedule(every=EVERY, per_decade=0)))
    handler = CallbackHandler([DefaultFlowCallback(), TensorBoardCallback(), callback], model, None, None, None)
    state, control = TrainerState(max_steps=updates), TrainerControl()
    handler.on_train_begin(args, state, control)

    def step(update: int) -> None:
        state.global_step = update
        control.should_training_stop = update == updates
        handler.on_step_end(args, state, control)

    early, late = watched(model, updates, step)
    handler.on_train_end(args, state, control)
    record_property("resident MiB", [early.resident, late.resident])
    check_flat(early, late)
    check_files(tmp_path / "geometry.jsonl", updates)
    assert [row["step"] for row in state.log_history] == list(range(0, updates + 1, EVERY))
    tally("long run")


@pytest.mark.fault
@pytest.mark.slow
def test_the_record_file_of_two_thousand_measurements_is_read_in_under_a_second(
    tmp_path: Path, tally: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    model = tiny.model()
    path = tmp_path / "geometry.jsonl"
    monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, path=path)
    monitor.start(model)
    record = monitor.measure(model, 0)[0]
    for step in range(1, 2_000):
        record.step = step
        monitor._write_lines([record])
    monitor.close()
    begin = time.perf_counter()
    assert len(read_records(path)) == 2_000
    seconds = time.perf_counter() - begin
    record_property("seconds", seconds)
    assert seconds < 1.0
    tally("long run")


def test_the_search_for_phases_does_not_grow_with_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    search = phases.stretches

    def counting(heights: phases.Array, *rest: object) -> list[phases.Stretch]:
        searched.append(len(heights))
        return search(heights, *rest)

    monkeypatch.setattr(phases, "stretches", counting)
    curve = phases.PhaseTracker()
    curve.load([(EVERY * k, 5.0 + k % 7) for k in range(2_000)])
    curve.add(EVERY * 2_000, 5.0)
    assert max(searched) <= 200


def test_warnings_that_come_back_are_not_kept() -> None:
    """A run whose every measurement fails keeps one key for each kind of failure, not one for each measurement."""

    def fails(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> None:
        if armed:
            raise RuntimeError(f"no {torch.rand(()).item()}")
        model(input_ids=ids, attention_mask=mask)

    armed: list[bool] = []
    model = tiny.model()
    monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, forward=fails, module="gpt_neox.final_layer_norm")
    monitor.start(model)
    armed.append(True)
    for step in range(40):
        monitor.measure(model, step)
    given = [value for value in vars(monitor).values() if isinstance(value, WarnOnce)]
    assert sum(len(once._given) for once in given) <= 2  # and n < 4d, if that is so


@pytest.mark.gpu
@pytest.mark.fault
@pytest.mark.slow
def test_the_device_holds_no_more_at_the_end(tmp_path: Path, tally: Callable[..., None]) -> None:
    model = tiny.model().to("cuda")
    monitor = GeometryMonitor(
        tiny.probe(), alpha_window=tiny.WINDOW, schedule=Schedule(every=EVERY, per_decade=0), total_steps=100_000
    )
    monitor.step(model, 0)
    seen = []
    for update in range(1, 100_001):
        monitor.step(model, update)
        if update % 10_000 == 0:
            torch.cuda.synchronize()
            seen.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    monitor.close()
    assert len(set(seen)) == 1
    tally("long run, device memory")
