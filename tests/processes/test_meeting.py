"""Two and three processes: unlike monitors are refused by all, nobody waits in a collective, and work is shared."""

from __future__ import annotations

from typing import Any

import launcher
import pytest
import tiny
from processes import meeting_worker as worker

Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.fault])])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the processes found."""
    folder = tmp_path_factory.mktemp("meeting")
    given = launcher.launch("meeting_worker.py", folder, processes=request.param)
    assert [process["world size"] for process in given] == [request.param] * request.param
    return given


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return worker.shares()


@pytest.mark.parametrize(
    ("what", "where"),
    {
        "probe": "probes", "size": "probes", "order": "probes", "settings": "positions", "schedule": "schedule",
        "on_error": "on_error", "behaviour": "measures", "kind": "what is measured",
    }.items(),
)  # fmt: skip
def test_all_refuse_what_one_holds_otherwise(found: Found, what: str, where: str) -> None:
    errors = {process["unlike"][what] for process in found}
    (error,) = errors
    last = len(found) - 1
    assert error.startswith(f"ValueError: the processes of this run differ in {where}: ")
    assert "on process 0, " in error
    assert f"on process {last}: add the callback" in error


def test_all_refuse_what_does_not_fit_the_model_of_one(found: Found) -> None:
    *others, last = (process["refused"] for process in found)
    assert last.startswith("ValueError: probe 'probe' holds token id")
    assert others == [f"ValueError: on process {len(found) - 1}: {last}"] * (len(found) - 1)


def test_words_are_exchanged_without_a_store_too(found: Found) -> None:
    for process in found:
        assert process["without a store"]["heard"] == "|".join(["", "é" * 300, "third"][: len(found)])
        assert "differ in probes" in process["without a store"]["unlike"]


def test_one_that_is_late_is_waited_for(found: Found) -> None:
    assert [process["late"] for process in found] == ["nothing"] * len(found)


@pytest.mark.fault
def test_one_that_never_comes_ends_the_wait_before_the_time_out(found: Found) -> None:
    number = len(found) - 1
    for process in found[:-1]:
        assert f"ValueError: process {number} has not come to measure" in process["absent"]["said"]
        assert "on every process of the run" in process["absent"]["said"]
        assert process["absent"]["seconds"] < worker.TIMEOUT


@pytest.mark.fault
def test_a_run_after_one_that_a_process_left_hears_no_old_words(found: Found) -> None:
    (expected,) = worker.geometry().measure(tiny.model(), 0)
    for process in found:
        assert process["missed"]["said"] == "nothing"
        (metrics,) = process["missed"]["numbers"]
        assert metrics["rankme"] == pytest.approx(expected.metrics["rankme"], rel=1e-9)
    assert "has not come to measure" in found[0]["missed"]["failed"]["probe"]


@pytest.mark.fault
def test_a_measurement_may_last_longer_than_the_time_out(found: Found) -> None:
    """And training ends as it would have without."""
    for process in found:
        long = process["long"]
        assert min(long["seconds"]) > 1.5 * worker.TIMEOUT
        assert long["alone"] == long["watched"] == long["measured"]
    assert [set(process["long"]["asked"]) for process in found] == [{0}, *[set()] * (len(found) - 1)]


@pytest.mark.parametrize("name", worker.KEYS)
def test_all_take_a_share_and_give_what_one_gives(found: Found, alone: dict[str, Any], name: str) -> None:
    for process in found:
        assert process["shares"]["numbers"][name] == pytest.approx(alone["numbers"][name], rel=1e-9, abs=1e-15)
        assert process["shares"]["numbers"][name] == found[0]["shares"]["numbers"][name]
    passes = [len(process["shares"]["rows"][name]) for process in found]
    assert min(passes) > 0
    assert max(passes) < len(alone["rows"][name])


def test_all_measures_of_one_monitor_are_shared_in_one_order(found: Found, alone: dict[str, Any]) -> None:
    for process in found:
        assert process["shares"]["together"] == pytest.approx(alone["together"], rel=1e-9, abs=1e-15)
        assert process["shares"]["together"] == found[0]["shares"]["together"]


@pytest.mark.fault
def test_a_share_that_fails_is_a_failure_of_all(found: Found) -> None:
    for process in found:
        first, second = process["fails"]["found"]
        assert first == {"own/n": 1.0}
        assert second.keys() == {"own/n", "loss/loss"}
    (warning,) = found[0]["fails"]["warnings"]
    assert "'loss' was not measured at step 0 (KeyError: 'injected 1')" in warning
    assert [process["fails"]["warnings"] for process in found[1:]] == [[]] * (len(found) - 1)
