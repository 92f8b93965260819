"""`Schedule(budget=…)`: worked by hand, and through a monitor on a clock of the test's own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import nn

from geomcallbacks import GeometryMonitor, Schedule
from geomcallbacks.record import read_lines
from geomcallbacks.running.budget import Budget


class Clocked:
    """A budget with a clock: `train(seconds)` is an update, `measure(seconds)` an optional measurement."""

    def __init__(self, share: float, step: int = 0, state: dict[str, float] | None = None) -> None:
        self.step, self.now = step, 0.0
        self.budget = Budget(share, step, 0.0, state)

    def train(self, *seconds: float) -> None:
        for each in seconds:
            self.step, self.now = self.step + 1, self.now + each
            self.budget.trained(self.step, self.now)

    def measure(self, seconds: float, optional: bool = True) -> None:
        self.now += seconds
        self.budget.measured(seconds, optional=optional)


def test_a_run_of_known_length_by_hand() -> None:
    """1 % of 1000 updates of 2 s are 20 s: half may be spent at once, the rest comes with 0.01 s an update."""
    run, taken = Clocked(0.01), []
    run.measure(2.0, optional=False)
    for step in range(1, 1001):
        run.train(2.0)
        if run.budget.allows(1000):
            run.measure(2.0)
            taken.append(step)
    # the k-th needs 2 k <= 10 + 0.01 step; the first update alone shows no pace, and allows 0.02 s
    assert taken == [2, 3, 4, 5, 6, 200, 400, 600, 800, 1000]
    assert (run.budget.optional, run.budget.training) == (20.0, 2000.0)


def test_an_unknown_length_follows_the_time_trained() -> None:
    run = Clocked(0.1)
    run.measure(1.0, optional=False)
    run.measure(1.0, optional=False)
    run.train(*[1.0] * 9)
    assert not run.budget.allows(None)  # another second would be more than half of 0.9 s and of the rest
    run.train(1.0)
    assert run.budget.allows(None)
    run.measure(1.0)
    assert not run.budget.allows(None)


def test_training_is_projected_by_the_median_pace() -> None:
    """An evaluation falls into one update: it has taken its time, and is not the pace of the others."""
    run = Clocked(0.02)
    run.measure(9.0, optional=False)
    run.measure(8.0, optional=False)
    run.train(60.0, 1.0, 1.0, 500.0, 1.0)
    run.budget.trained(run.step, run.now)  # a second call at the same update is no update
    # 563 s have passed; with 232 more, 2 % are 15.9 s, of which a half and 5 / 237 of a half may be spent by now
    assert run.budget.account(5 + 232)["allowed"] == pytest.approx(0.02 * 795 * (1 + 5 / 237) / 2)
    assert run.budget.allows(5 + 232)
    assert not run.budget.allows(5 + 200)


def test_what_compiles_is_no_pace_and_no_cost() -> None:
    """The first update says nothing of the pace, and the first measurement nothing of the cost."""
    run = Clocked(0.01)
    run.measure(9.0, optional=False)
    run.train(5.0)
    assert run.budget.account(100)["allowed"] == pytest.approx(0.01 * 5.0 * 1.01 / 2)
    run.train(1.0)
    run.measure(0.1, optional=False)
    taken = 0
    while run.budget.allows(1000) and taken < 99:
        run.measure(0.1)
        taken += 1
    assert taken == int(0.01 * (6 + 998) * 1.002 / 2 / 0.1)


@pytest.mark.parametrize("total", [1000, None])
@pytest.mark.parametrize("begins", range(2, 1000, 111))
def test_a_probe_that_becomes_fifty_times_dearer(begins: int, total: int | None) -> None:
    """From 0.04 to 2 s at update `begins`: the 10 s of the run are exceeded by two of them at most."""
    run = Clocked(0.01)
    run.measure(0.04, optional=False)
    for step in range(1, 1001):
        run.train(1.0)
        if run.budget.allows(total):
            run.measure(2.0 if step >= begins else 0.04)
    assert 5.0 < run.budget.optional <= 10.0 + 2 * 2.0


def test_a_resumed_run_gets_no_new_allowance() -> None:
    """Stopped and resumed nine times, one that starts anew each time could spend five times its half."""
    state: dict[str, float] | None = None
    for begin in range(0, 1000, 100):
        run = Clocked(0.01, begin, state)
        for _ in range(100):
            run.train(1.0)
            if run.budget.allows(1000):
                run.measure(1.0)
        state = json.loads(json.dumps(run.budget.state_dict()))
    assert (run.budget.training, run.budget.updates) == (1000.0, 1000)
    assert 9.0 <= run.budget.optional <= 11.0


@pytest.mark.parametrize("known", [True, False])
def test_a_cold_measurement_of_a_resumed_process_is_no_measure_of_the_others(known: bool) -> None:
    """Warm ones of 0.1 s, 50 of which fit into 5 % of 100 s; the first of the new process takes 20 s."""
    earlier = Clocked(0.05, 0)
    earlier.measure(30.0, optional=False)
    earlier.measure(0.1, optional=False)
    run, taken = Clocked(0.05, 900, earlier.budget.state_dict() if known else None), 0
    for step in range(901, 1001):
        run.train(1.0)
        if step % 2 == 0 and run.budget.allows(1000):
            run.measure(0.1 if taken else 20.0)
            taken += 1
    assert taken in (49, 50)
    assert run.budget.optional == pytest.approx(0.1 * taken)


def test_a_run_resumed_without_its_account_has_that_of_what_is_left() -> None:
    run = Clocked(0.1, step=900)
    run.train(1.0, 1.0)
    run.measure(9.0, optional=False)
    run.measure(1.0)
    # 10 % of 100 s, half at once: 0.5 + 0.5 x 2 / 100 of 10 s
    assert run.budget.account(1000) == pytest.approx({"cost": 1.0, "spent": 1.0, "allowed": 5.1})


def monitor(path: Path | None, budget: float, every: int, **changes: Any) -> GeometryMonitor:
    schedule = Schedule(per_decade=0, every=every, at=(55,), budget=budget)
    return GeometryMonitor(
        tiny.probe(), alpha_window=tiny.WINDOW, batch_size=64, on_error="raise", path=path, schedule=schedule, **changes
    )


def test_a_monitor_skips_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 % of 100 updates of 1 s are 10 s: three optional ones of 2.9 s, two of them early; the rest is noted."""
    clock, model = [0.0], tiny.model()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    watch = monitor(tmp_path / "g.jsonl", 0.1, 10, total_steps=100)
    watch.start(model)

    def takes_its_time(module: nn.Module, args: object) -> None:
        clock[0] += 2.9

    model.gpt_neox.register_forward_pre_hook(takes_its_time)
    measured = []

    def train() -> None:
        for step in range(101):
            measured.extend(record.step for record in watch.step(model, step))
            clock[0] += 1.0

    with pytest.warns(UserWarning, match=r"budget=0\.1 does not allow the measurement at step 30") as caught:
        train()
    assert len(caught) == 1
    # the k-th needs 2.9 k <= 5 + step / 20, and at 55 a fixed one is taken besides
    assert measured == [0, 10, 20, 55, 80, 100]
    skips = [line for line in read_lines(tmp_path / "g.jsonl") if line["kind"] == "skip"]
    assert [(line["step"], line["reason"]) for line in skips] == [(s, "budget") for s in (30, 40, 50, 60, 70, 90)]
    assert [round(skips[0][key], 9) for key in ("cost", "spent", "allowed")] == [2.9, 5.8, 6.5]


def test_only_optional_ones_are_charged_and_a_checkpoint_holds_what_is_spent() -> None:
    model, first = tiny.model(), monitor(None, 0.5, 2, total_steps=1000)
    first.step(model, 0)
    first.measure(model, 1)  # one that the user asks for
    assert first.step(model, 3, last=True) != []
    assert first.state_dict()["spent"]["optional_seconds"] == 0.0
    for step in range(4, 9):
        time.sleep(0.05)
        first.step(model, step)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["spent"]["optional_seconds"] > 0.0
    second = monitor(None, 0.5, 2, total_steps=1000)
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.start(model, step=8)
    assert second.state_dict()["spent"] == state["spent"]
    second.start(model)  # another run
    assert second.state_dict()["spent"]["optional_seconds"] == 0.0
