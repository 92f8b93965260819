"""The exact updates that are measured, and what the budget lets through."""

from __future__ import annotations

import json

import pytest

from geomcallbacks import Schedule
from geomcallbacks.running.budget import Ledger


@pytest.mark.parametrize(
    ("schedule", "total", "wanted"),
    [
        (Schedule(), 0, [0]),
        (Schedule(), 1, [0, 1]),
        (Schedule(), 5, [0, 1, 2, 3, 4, 5]),
        # log-spaced by eighths of a decade (1, 2, 3, 4), then every second: a fiftieth of the run
        (Schedule(), 100, [0, 1, 2, 3, 4, *range(6, 101, 2)]),
        # 10^(k/8) = 1 1.3 1.8 2.4 3.2 4.2 5.6 7.5 10 13.3 17.8 23.7 31.6 42.2 56.2, until its steps are 20 wide
        (Schedule(), 1000, [0, 1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32, 42, 56, *range(60, 1001, 20)]),
        (Schedule(per_decade=0, every=4), 10, [0, 4, 8, 10]),
        (Schedule(per_decade=0), 20, list(range(21))),
        (Schedule(per_decade=1, every=1000), 2500, [0, 1, 10, 100, 1000, 2000, 2500]),
        (Schedule(per_decade=2, every=50), 200, [0, 1, 3, 10, 50, 100, 150, 200]),
        (Schedule(per_decade=0, every=100, at=(7, 5, 33)), 50, [0, 5, 7, 33, 50]),
        (Schedule(every=1), 4, [0, 1, 2, 3, 4]),
    ],
)
def test_steps(schedule: Schedule, total: int, wanted: list[int]) -> None:
    assert schedule.steps(total) == wanted


def test_steps_of_an_unknown_total() -> None:
    """Log-spaced throughout, or by `every` where that is given."""
    assert [s for s in range(120) if Schedule(per_decade=2).is_due(s)] == [0, 1, 3, 10, 32, 100]
    assert [s for s in range(45) if Schedule(every=10).is_due(s)] == [0, 1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 30, 40]
    assert Schedule(per_decade=1).is_due(10**9)
    assert not Schedule(per_decade=1).is_due(10**9 + 1)


@pytest.mark.parametrize("total", [1, 2, 7, 49, 50, 51, 99, 333, 5000])
@pytest.mark.parametrize("schedule", [Schedule(), Schedule(every=7), Schedule(per_decade=0, every=13, at=(2,))])
def test_first_last_and_fixed_always(schedule: Schedule, total: int) -> None:
    steps = schedule.steps(total)
    assert steps[0] == 0
    assert steps[-1] == total
    assert set(steps) >= {step for step in schedule.at if step <= total}
    assert len(steps) <= 120 or schedule.every is not None
    fixed = {step for step in range(total + 1) if schedule.is_fixed(step, total)}
    assert fixed == {0, total, *(step for step in schedule.at if step <= total)}


def test_beyond_a_wrong_end_it_goes_on() -> None:
    """A total can be an estimate, as under Lightning's manual optimisation."""
    assert Schedule(every=5).is_due(15, 10)
    assert not Schedule(every=5, per_decade=0).is_due(16, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, r"every=0: give a positive number of updates"),
        ({"per_decade": -1}, r"per_decade=-1: give 0 or a positive"),
        ({"at": (3, -2)}, r"at=\(-2, 3\): updates are whole numbers, counted from 0"),
        ({"budget": 0.0}, r"budget=0.0: give a share.*between 0 and 1"),
        ({"budget": 1.5}, r"budget=1.5: give a share"),
    ],
)
def test_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**changes)


def test_ledger_without_a_budget_allows_everything() -> None:
    ledger = Ledger(None)
    ledger.measured(1e9, fixed=False)
    assert ledger.allows(None)


def paced(budget: float, pace: float = 1.0) -> Ledger:
    """A ledger after two updates: the first, and one that shows the pace."""
    ledger = Ledger(budget)
    for _ in range(2):
        ledger.trained(pace, updates=1)
    return ledger


def test_ledger_of_a_known_length_by_hand() -> None:
    """1 % of 1000 updates of 2 s are 20 s: half may be spent at once, the rest comes with 0.01 s an update."""
    ledger = Ledger(0.01)
    taken = []
    ledger.measured(2.0, fixed=True)
    for step in range(1, 1001):
        ledger.trained(2.0, updates=1)
        if ledger.allows(1000):
            ledger.measured(2.0, fixed=False)
            taken.append(step)
    # the k-th needs 2 k <= 10 + 0.01 step; the first update alone shows no pace, and allows 0.02 s
    assert taken == [2, 3, 4, 5, 6, 200, 400, 600, 800, 1000]
    assert ledger.optional_seconds == pytest.approx(0.01 * ledger.training_seconds)
    assert (ledger.fixed_seconds, ledger.training_seconds) == (2.0, 2000.0)


def test_ledger_of_an_unknown_length_follows_the_time_trained() -> None:
    ledger = Ledger(0.1)
    ledger.measured(1.0, fixed=True)
    ledger.trained(9.0, updates=9)
    assert not ledger.allows(None)  # another second would be more than 0.9 s
    ledger.trained(1.0, updates=1)
    assert ledger.allows(None)
    ledger.measured(1.0, fixed=False)
    assert not ledger.allows(None)


def test_ledger_projects_by_the_median_pace() -> None:
    """An evaluation falls into one update: it has taken its time, and is not the pace of the others."""
    ledger = Ledger(0.01)
    ledger.measured(8.0, fixed=True)
    for seconds in (60.0, 1.0, 1.0, 500.0, 1.0):
        ledger.trained(seconds, updates=1)
    ledger.trained(0.0, updates=0)  # a second call at the same update is no update
    # 563 s have passed; 1 % of them and of 237 more are 8 s
    assert ledger.allows(5 + 237)
    assert not ledger.allows(5 + 236)


def test_a_first_update_that_compiles_lets_nothing_through() -> None:
    """At its pace 100 updates would take 500 s; they take 104, and 1 % of that is less than one measurement."""
    ledger = Ledger(0.01)
    ledger.measured(1.6, fixed=True)
    for seconds in (5.0, *[1.0] * 99):
        ledger.trained(seconds, updates=1)
        assert not ledger.allows(100)


def test_ledger_counts_several_updates_between_calls() -> None:
    ledger = Ledger(0.5)
    ledger.trained(1.0, updates=1)
    ledger.trained(9.0, updates=9)
    ledger.measured(50.0, fixed=True)
    assert ledger.allows(100)
    assert not ledger.allows(99)


def test_a_first_measurement_that_compiles_does_not_end_the_others() -> None:
    ledger = paced(0.01)
    ledger.measured(9.0, fixed=True)
    taken = 0
    while ledger.allows(1000) and taken < 99:  # 9 s would fit the 10 s of the run, of which 5.01 may be spent by now
        ledger.measured(0.1, fixed=False)
        taken += 1
    assert taken == 50


def test_one_slow_measurement_does_not_end_the_others() -> None:
    ledger = paced(0.01)
    for seconds in (0.1, 0.1, 0.1, 4.0):
        ledger.measured(seconds, fixed=False)
    assert ledger.allows(1000)  # what it took is spent, and another like it would still be within 10 s
    ledger.measured(4.0, fixed=False)
    assert not ledger.allows(1000)


@pytest.mark.parametrize("total", [1000, None])
@pytest.mark.parametrize("begins", range(2, 1000, 37))
def test_a_probe_that_becomes_fifty_times_dearer(begins: int, total: int | None) -> None:
    """From 0.04 to 2 s at update `begins`: the 10 s of the run are exceeded by one of them at most."""
    ledger = Ledger(0.01)
    ledger.measured(0.04, fixed=True)
    for step in range(1, 1001):
        ledger.trained(1.0, updates=1)
        if ledger.allows(total):
            ledger.measured(2.0 if step >= begins else 0.04, fixed=False)
        assert total is not None or ledger.optional_seconds <= 0.01 * step + 2.0  # nothing is spent ahead
    assert 5.0 < ledger.optional_seconds <= 1.2 * 10.0


def test_a_resumed_run_gets_no_new_allowance() -> None:
    """Stopped and resumed nine times, one that starts anew each time could spend five times its half."""
    state: dict[str, float] | None = None
    for begin in range(0, 1000, 100):
        ledger = Ledger(0.01, begin, state)
        if begin == 0:
            ledger.measured(1.0, fixed=True)
        for _ in range(100):
            ledger.trained(1.0, updates=1)
            if ledger.allows(1000):
                ledger.measured(1.0, fixed=False)
        state = json.loads(json.dumps(ledger.state_dict()))
    assert (ledger.optional_seconds, ledger.training_seconds, ledger.updates) == (10.0, 1000.0, 1000)


def test_a_run_resumed_without_its_account_has_that_of_what_is_left() -> None:
    ledger = Ledger(0.1, begun=900)
    for _ in range(2):
        ledger.trained(1.0, updates=1)
    ledger.measured(1.0, fixed=False)
    # 10 % of 100 s, half at once: 0.5 + 0.5 x 2 / 100 of 10 s
    assert ledger.account(1000) == pytest.approx({"cost": 1.0, "spent": 1.0, "allowed": 5.1})
