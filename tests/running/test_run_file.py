"""Which file a run goes on in, what a copy of a monitor takes along, and what outlives a run."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from drives import DRIVES, EACH, make_trainer, steps, watcher

from geomcallbacks import GeometryMonitor, Schedule, read_records
from geomcallbacks.adapters.tracker import TrackerQueue
from geomcallbacks.record import read_lines

ROOT = Path(__file__).parents[2]


def monitor(path: Path | None = None, **changes: Any) -> GeometryMonitor:
    return GeometryMonitor(tiny.probe(), path=path, **tiny.watching(**changes))


# --- which file -----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_without_a_state_joins_no_other_run(tmp_path: Path) -> None:
    """Its file would be one of two curves. It takes a name of its own, and says so."""
    path, model = tmp_path / "g.jsonl", tiny.model()
    other = monitor(path)
    for step in range(5):
        other.step(model, step)
    other.close()
    midway = monitor(path)
    with pytest.warns(UserWarning, match=r"g\.jsonl is of another run or callback: .* recorded in .*g-2\.jsonl"):
        midway.start(model, step=3)
    midway.step(model, 4)
    midway.close()
    assert (steps(path), steps(midway.record_path)) == ([0, 2, 4], [4])


@pytest.mark.parametrize("framework", ["trainer", "lightning"])
def test_a_second_run_in_a_folder_says_where_it_is_recorded(framework: str, tmp_path: Path) -> None:
    DRIVES[framework](tmp_path, [watcher(framework, "geometry", tmp_path)])
    with pytest.warns(UserWarning, match=r"geometry\.jsonl is of another run .*geometry-2\.jsonl"):
        DRIVES[framework](tmp_path, [watcher(framework, "geometry", tmp_path)])


def test_phases_of_a_run_that_moves_to_another_folder_go_on(tmp_path: Path) -> None:
    model = tiny.model()
    first = monitor(tmp_path / "a" / "g.jsonl", schedule=EACH)
    for step in range(8):
        first.step(model, step)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = monitor(tmp_path / "b" / "g.jsonl", schedule=EACH)
    second.load_state_dict(state)
    second.start(model, step=7)
    assert [len(curve._points) for curve in second._curves._trackers.values()] == [8]
    second.close()
    header = read_lines(tmp_path / "b" / "g.jsonl")[0]
    assert (header["run_id"], header["resumed_from"]) == (state["run_id"], 7)


@pytest.mark.parametrize("saved_at", [4, 5])
def test_a_state_saved_before_the_step_of_its_update_loses_no_record(saved_at: int, tmp_path: Path) -> None:
    """Loops that save first and measure then, also where they call the monitor now and then."""
    path, model = tmp_path / "g.jsonl", tiny.model()
    first, state = monitor(path), {}
    for step in range(7):
        if step == saved_at:
            state = json.loads(json.dumps(first.state_dict()))
        first.step(model, step)
    first.close()
    again = monitor(path)
    again.load_state_dict(state)
    for step in range(saved_at + 1, 9):
        again.step(model, step)
    again.close()
    assert steps(path) == [0, 2, 4, 6, 8]


def test_an_attempt_that_is_given_up_is_no_part_of_the_run(tmp_path: Path) -> None:
    """Memory runs out at the third update of each attempt but the last, as `auto_find_batch_size` survives it."""
    settings = dict(auto_find_batch_size=True, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    made = make_trainer(tmp_path, [watcher("trainer", "geometry", tmp_path)], **settings)
    train, calls = made.training_step, itertools.count(1)

    def step(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in (4, 7):
            raise torch.OutOfMemoryError("CUDA out of memory. Injected")
        return train(*args, **kwargs)

    made.training_step = step
    made.train()
    assert [file.name for file in tmp_path.glob("*.jsonl")] == ["geometry.jsonl"]
    assert steps(tmp_path / "geometry.jsonl") == [0, 2, 4]
    headers = [line for line in read_lines(tmp_path / "geometry.jsonl") if line["kind"] == "header"]
    assert [header.get("attempt", 1) for header in headers] == [1, 2, 3]
    assert len({header["run_id"] for header in headers}) == 1


def test_a_run_after_an_interrupted_one_is_no_attempt_of_it(tmp_path: Path) -> None:
    ours = watcher("trainer", "geometry", tmp_path)
    made = make_trainer(tmp_path, [ours], auto_find_batch_size=True)
    train, calls = made.training_step, itertools.count(1)

    def step(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    made.training_step = step
    with pytest.raises(KeyboardInterrupt):
        made.train()
    with pytest.warns(UserWarning, match=r"recorded in .*geometry-2\.jsonl"):
        made.train()
    found = [steps(tmp_path / name) for name in ("geometry.jsonl", "geometry-2.jsonl")]
    assert found == [[0, 2], [0, 2, 4]]


@pytest.mark.parametrize("back", [0, 2])
def test_a_run_that_is_put_back_to_an_earlier_state_has_each_update_once(back: int, tmp_path: Path) -> None:
    watch, model = monitor(tmp_path / "g.jsonl", schedule=EACH), tiny.model()
    states = {}
    for step in range(5):
        watch.step(model, step)
        states[step] = watch.state_dict()
    watch.load_state_dict(states[back])
    for step in range(back if back == 0 else back + 1, 7):
        watch.step(model, step)
        assert watch.state_dict()["step"] == step
    watch.close()
    assert steps(tmp_path / "g.jsonl") == list(range(7))
    assert [file.name for file in tmp_path.glob("*.jsonl")] == ["g.jsonl"]


@pytest.mark.parametrize("number", [np.int64, torch.tensor])
def test_numbers_of_other_libraries_are_recorded(number: Any, tmp_path: Path) -> None:
    schedule = Schedule(every=number(2), per_decade=0, at=np.array([1]))
    watch = monitor(tmp_path / "g.jsonl", schedule=schedule, total_steps=number(4))
    watch.start(tiny.model(), step=number(0))
    for step in range(5):
        watch.step(tiny.model(), number(step), tokens=number(8 * step))
    watch.close()
    assert steps(tmp_path / "g.jsonl") == [0, 1, 2, 4]
    header, *_ = read_lines(tmp_path / "g.jsonl")
    assert (header["settings"]["total_steps"], header["settings"]["schedule"]["at"]) == (4, [1])


def test_a_folder_is_no_record_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path='.*' is a folder: give a file, such as .*geometry\.jsonl"):
        monitor(tmp_path)


# --- what a copy takes along, and what outlives a run ---------------------------------------------------------------


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("framework", DRIVES)
@pytest.mark.parametrize("when", ["during", "after"])
def test_a_copy_of_what_has_served_measures_a_run_of_its_own(
    copied: Any, framework: str, when: str, tmp_path: Path
) -> None:
    copies: list[Any] = []
    watch = watcher(framework, "geometry", tmp_path)

    def hook(update: int, model: Any) -> None:
        if when == "during" and update == 3:
            copies.append(copied(watch))

    DRIVES[framework](tmp_path, [watch], hook)
    copies += [] if copies else [copied(watch)]
    (tmp_path / "again").mkdir()
    changed = {"path": tmp_path / "again" / "geometry.jsonl"} if framework == "loop" else {}
    for name, value in changed.items():
        setattr(copies[0], name, value)
    DRIVES[framework](tmp_path / "again", copies)
    assert steps(tmp_path / "again" / "geometry.jsonl") == steps(tmp_path / "geometry.jsonl") == [0, 2, 4]


def test_no_thread_outlives_its_run(tmp_path: Path) -> None:
    ours = lambda: [thread for thread in threading.enumerate() if thread.name.startswith("geomcallbacks")]
    for report_to in ("tensorboard", ["tensorboard"]):
        DRIVES["trainer"](tmp_path, [watcher("trainer", "geometry", tmp_path)], report_to=report_to)
        assert ours() == []
    dropped = TrackerQueue()  # of a run that was interrupted, and has called no last hook
    dropped.submit("x", lambda: None)
    dropped.flush()
    assert len(ours()) == 1
    del dropped
    gc.collect()
    deadline = time.monotonic() + 10
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ours() == []


FORKS = """
import multiprocessing, os, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
import tiny
from geomcallbacks import GeometryMonitor
watch = GeometryMonitor(tiny.probe(), path=sys.argv[1], **tiny.watching())
watch.start(tiny.model())
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.fault
def test_a_process_forked_of_a_run_holds_no_lock_of_it(tmp_path: Path) -> None:
    """Workers of a data loader outlive a run that is killed; the scheduler starts it again at once."""
    path, env = tmp_path / "g.jsonl", os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FORKS, str(path), str(ROOT / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as first:
        child = int(first.stdout.readline())
        first.kill()
    try:
        run_id = read_lines(path)[0]["run_id"]
        again = monitor(path)
        again.load_state_dict({"step": 2, "measured": 0, "run_id": run_id})
        again.step(tiny.model(), 2)
        again.close()
        assert again.record_path == path
    finally:
        os.kill(child, signal.SIGKILL)


def in_a_fork(watch: GeometryMonitor) -> None:
    watch.close()


def test_a_forked_process_writes_nothing_that_waits(tmp_path: Path) -> None:
    watch = monitor(tmp_path / "g.jsonl")
    watch.step(tiny.model(), 0)
    process = multiprocessing.get_context("fork").Process(target=in_a_fork, args=(watch,))
    process.start()
    process.join()
    assert process.exitcode == 0
    watch.step(tiny.model(), 2)
    watch.close()
    assert [line["kind"] for line in read_lines(tmp_path / "g.jsonl")] == ["header", "record", "record"]


def test_the_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    watch = monitor(Path("~/geo/g.jsonl"), schedule=Schedule(every=1))
    watch.step(tiny.model(), 0)
    watch.close()
    assert len(read_records("~/geo/g.jsonl")) == len(read_records(tmp_path / "geo" / "g.jsonl")) == 1


@pytest.mark.parametrize("state", [{}, {"step": None}, {"step": "4"}])
def test_a_state_that_is_none_is_refused_at_once(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"of the state is no update: give what state_dict\(\) returned"):
        monitor().load_state_dict(state)
