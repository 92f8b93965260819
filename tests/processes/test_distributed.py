"""Two processes give what one gives, agree where one of them fails, and never wait for each other for good.

All scenarios of `distributed_worker` run in one pair of processes; tests hold them against the same scenario run here.
"""

from __future__ import annotations

from typing import Any

import launcher
import pytest
from processes import distributed_worker as worker


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    found = launcher.launch("distributed_worker.py", tmp_path_factory.mktemp("two"))
    assert [process["world size"] for process in found] == [2, 2]
    return found


def close_to(record: dict[str, Any], rel: float = 1e-9) -> dict[str, Any]:
    """The record, with numbers to `rel`."""
    numbers = ("metrics", "spectrum", "intervals")
    return record | {key: pytest.approx(record[key], rel=rel, abs=1e-15) for key in numbers}


@pytest.mark.parametrize("name", list(worker.SAME))
def test_two_give_what_one_gives(two: list[dict[str, Any]], name: str) -> None:
    n, how = worker.SAME[name]
    rel = 1e-8 if "intervals" in how else 1e-9  # half-widths are differences of nearly equal numbers
    wanted = worker.measured(n, **how)
    assert wanted["warnings"] == two[0][name]["warnings"] == []
    for got, whole in zip(two[0][name]["records"], wanted["records"], strict=True):
        assert bool(whole["intervals"]) == ("intervals" in how)
        assert got == close_to(whole, rel)
    assert two[0][name]["records"] == two[1][name]["records"]


@pytest.mark.fault
def test_non_finite_rows_of_one_process_are_known_to_both(two: list[dict[str, Any]]) -> None:
    first, second = (process["not finite"] for process in two)
    assert first["records"] == second["records"] == worker.spoilt_row()["records"]
    assert first["records"][0]["metrics"]["rankme"] is None
    assert first["records"][0]["reasons"]["rankme"] == "3 of 40 rows are not finite"
    assert first["warnings"] == ["geometry has no value at step 0: 3 of 40 rows are not finite; training goes on"]
    assert second["warnings"] == []


@pytest.mark.fault
def test_out_of_memory_on_one_halves_both(two: list[dict[str, Any]]) -> None:
    first, second = (process["in the pass"] for process in two)
    assert first == second
    assert first["warnings"] == ["the probe ran out of memory: batch_size is now 2"]
    wanted = worker.measured(worker.MEMORY["in the pass"][0])["records"]
    for got, whole in zip(first["records"], wanted, strict=True):
        assert (got["batch_size"], whole["batch_size"]) == (2, 8)
        assert got["notes"] == [f"out of memory: batch_size halved to {size}" for size in (4, 2)]
        assert got["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)


@pytest.mark.fault
@pytest.mark.parametrize("name", [name for name, (_, in_pass) in worker.MEMORY.items() if not in_pass])
def test_out_of_memory_of_one_behind_the_pass_has_both_read_in_turn(two: list[dict[str, Any]], name: str) -> None:
    """Before any process has begun to exchange what it has. Smaller batches would not help."""
    first, second = (process[name] for process in two)
    assert first == second
    assert first["warnings"] == []
    wanted = worker.measured(worker.MEMORY[name][0])["records"]
    for got, whole in zip(first["records"], wanted, strict=True):
        assert got["notes"] == ["layers read in turn, 1 in a pass: their moments do not fit into memory together"]
        assert got == close_to(whole) | {"notes": got["notes"]}


@pytest.mark.fault
def test_both_end_where_one_is_told_to(two: list[dict[str, Any]]) -> None:
    """Not begun, given up whole, taken when it is due again, and then as ever."""
    assert [process["stopped"] for process in two] == [[2, 0, 0, 2, 2]] * 2


@pytest.mark.fault
def test_failure_on_one_is_a_failure_of_both(two: list[dict[str, Any]]) -> None:
    first, second = (process["failure"] for process in two)
    assert (first["failed"], second["failed"]) == (0, 0)
    assert "another process failed to measure" in first["warnings"][0]
    assert "KeyError: 'injected'" in second["warnings"][0]
    assert first["later"] == second["later"] == pytest.approx(worker.fails_and_goes_on()["later"], rel=1e-9)


def test_the_first_process_decides_within_the_budget(two: list[dict[str, Any]]) -> None:
    """By its own clock a measurement takes three batches of 0.2 s of the 8 s that a fifth of 40 updates is."""
    first, second = (process["costly on the first"] for process in two)
    assert first["steps"] == second["steps"]
    assert {0, 40} <= set(first["steps"])
    assert 8 <= len(first["steps"]) <= 2 + 8 / 0.6
    assert second["warnings"] == []
    assert [process["costly on the second"]["steps"] for process in two] == [list(range(41))] * 2


def test_the_first_process_writes_and_both_know_the_phase_after_a_restart(two: list[dict[str, Any]]) -> None:
    assert [process["restart"]["phase"] for process in two] == ["warm-up", "warm-up"]
    (probe,) = [name for name in two[0]["restart"]["files"] if name.startswith("_g-probes/")]
    spectra = [f"g-spectra/step-{step:09d}.safetensors" for step in range(10)]
    assert [process["restart"]["files"] for process in two] == [[probe, *spectra, "g.jsonl"]] * 2
