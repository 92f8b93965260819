"""Two processes give what one gives, agree where one of them fails, and never wait for each other for good.

All scenarios of `distributed_worker` run in one pair of processes; each test holds one of them against the same
scenario run here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed_worker
import processes
import pytest

TIMEOUT = 150.0  # seconds for both processes; they take a few


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    return processes.run_together("distributed_worker.py", 2, folder, TIMEOUT)


@pytest.fixture
def one(tmp_path: Path) -> Callable[[str], Any]:
    """Run a scenario in this process, as JSON gives it back."""
    calls = distributed_worker.scenarios(tmp_path)
    return lambda name: json.loads(json.dumps(calls[name]()))


def assert_close(got: Any, wanted: Any, rel: float) -> None:
    """Equal, with numbers to `rel`, whatever they are nested in."""
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_close(got[key], wanted[key], rel)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, rel)
    elif isinstance(wanted, float):
        assert math.isclose(got, wanted, rel_tol=rel, abs_tol=1e-15), (got, wanted)
    else:
        assert got == wanted


def test_there_are_two_processes(two: list[dict[str, Any]]) -> None:
    assert [found["world size"] for found in two] == [2, 2]


@pytest.mark.parametrize(
    "name",
    [
        "n > d, odd",
        "n <= d",
        "n = d",
        "one batch",
        "one batch, n <= d",
        "fewer rows than processes",
        "several positions",
        "all positions",
        "bf16 model",
        "bf16 model, n <= d",
        "moments",
        "moments of an idle process",
        "rows",
        "rows of an idle process",
    ],
)
def test_two_give_what_one_gives(two: list[dict[str, Any]], one: Callable[[str], Any], name: str) -> None:
    assert two[0]["world size"] == 2
    wanted = one(name)
    for found in two:
        assert_close(found[name], wanted, rel=1e-9)
    assert two[0][name] == two[1][name]


def test_intervals_of_two_are_those_of_one(two: list[dict[str, Any]], one: Callable[[str], Any]) -> None:
    """A half-width is a difference of nearly equal numbers, so it has fewer digits than they."""
    wanted = one("intervals")
    assert len(wanted["records"][0]["intervals"]) == 10
    for found in two:
        assert_close(found["intervals"], wanted, rel=1e-8)


@pytest.mark.fault
def test_non_finite_rows_of_one_process_are_known_to_both(
    two: list[dict[str, Any]], one: Callable[[str], Any], tally: Callable[..., None]
) -> None:
    (record,) = two[0]["non-finite on one"]["records"]
    assert record["metrics"]["rankme"] is None
    assert record["reasons"]["rankme"].endswith("of 40 rows are not finite")
    records = [
        found["records"] for found in (*(process["non-finite on one"] for process in two), one("non-finite on one"))
    ]
    assert records[0] == records[1] == records[2]
    said = [process["non-finite on one"]["warnings"] for process in two]
    assert said == [["geometry has no value at step 0: 3 of 40 rows are not finite; training goes on"], []]
    tally("states of one process that are not finite")


@pytest.mark.fault
def test_out_of_memory_on_one_halves_both(
    two: list[dict[str, Any]], one: Callable[[str], Any], tally: Callable[..., None]
) -> None:
    found = [process["out of memory on one"] for process in two]
    assert found[0] == found[1]
    assert found[0]["warnings"] == ["the probe ran out of memory: batch_size is now 2"]
    wanted = one("out of memory on one")  # where nothing runs out
    for got, whole in zip(found[0]["records"], wanted["records"], strict=True):
        assert (got["batch_size"], whole["batch_size"]) == (2, 8)
        assert got["notes"] == [f"out of memory: batch_size halved to {size}" for size in (4, 2)]
        assert got["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
    tally("memory of one process")


@pytest.mark.fault
@pytest.mark.parametrize("name", ["no room on one", "no room on one for rows"])
def test_memory_that_runs_out_behind_the_pass(
    two: list[dict[str, Any]], one: Callable[[str], Any], name: str, tally: Callable[..., None]
) -> None:
    """Before any process has begun to exchange what it has."""
    (whole,) = one(name)["records"]
    assert two[0][name]["records"] == two[1][name]["records"]
    (got,) = two[0][name]["records"]
    assert got["notes"] == [f"out of memory: batch_size halved to {size}" for size in (4, 2)]
    assert got["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
    tally("memory of one process")


@pytest.mark.fault
def test_both_end_where_one_is_told_to(two: list[dict[str, Any]], tally: Callable[..., None]) -> None:
    """Not begun, given up whole, taken when it is due again, and then as ever."""
    assert [process["told to end on one"]["records"] for process in two] == [[2, 0, 0, 2, 2]] * 2
    tally("SIGTERM on one process", injected=2, survived=2)


@pytest.mark.fault
def test_failure_on_one_is_a_failure_of_both(
    two: list[dict[str, Any]], one: Callable[[str], Any], tally: Callable[..., None]
) -> None:
    first, second = (process["failure on one"] for process in two)
    assert (first["failed"], second["failed"]) == (0, 0)
    assert "another process failed to measure" in first["warnings"][0]
    assert "KeyError: 'injected'" in second["warnings"][0]
    later = one("failure on one")["later"]  # both go on together
    assert_close(first["later"], later, rel=1e-9)
    assert first["later"] == second["later"]
    tally("failure on one process")


def test_first_process_decides_within_the_budget(two: list[dict[str, Any]]) -> None:
    assert two[0]["clocks differ"] == two[1]["clocks differ"] == list(range(7))


def test_the_budget_is_that_of_the_first_process_under_a_load_that_differs(two: list[dict[str, Any]]) -> None:
    first, second = (process["loads differ"] for process in two)
    assert first["steps"] == second["steps"]
    assert sorted(first["steps"] + first["skips"]) == list(range(41))
    assert first["steps"][:2] == [0, 2]
    assert len(first["skips"]) > 10
    assert first["spent"]["optional_seconds"] <= 1.2 * 0.2 * first["spent"]["training_seconds"]
    assert (first["warnings"], second["warnings"]) == (1, 0)


def test_first_process_writes(two: list[dict[str, Any]]) -> None:
    (probe,) = [name for name in two[0]["files"] if name.startswith("g-probes/")]
    files = [probe, "g-spectra/step-000000000.safetensors", "g.jsonl"]
    assert two[0]["files"] == two[1]["files"] == files


def test_both_know_the_phase_after_a_restart(two: list[dict[str, Any]]) -> None:
    assert [process["restart"] for process in two] == ["warm-up", "warm-up"]
