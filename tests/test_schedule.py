"""The exact updates that are measured."""

from __future__ import annotations

import pytest

from geomcallbacks import Schedule


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
