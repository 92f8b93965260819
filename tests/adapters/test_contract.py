"""What every callback promises, and the plain loop with it, for geometry and behaviour alike."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drives
import pytest
import tiny
import torch
from drives import DRIVES, EACH, FAR, MEASURED, SUBJECTS, UPDATES, WATCHERS, Ended, differences, steps, watcher
from torch import nn

from geomcallbacks import GeometryMonitor, ProbeSet, read_records
from geomcallbacks.behaviour import CompletionLoss, Completions

ADAPTERS = ("trainer", "lightning")
each_kind = pytest.mark.parametrize(("framework", "subject"), WATCHERS)
each_framework = pytest.mark.parametrize("framework", DRIVES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Runs that nothing watches."""
    return {framework: drive(tmp_path_factory.mktemp(framework), []) for framework, drive in DRIVES.items()}


@dataclass(frozen=True)
class Watched:
    """A run of which every update was measured, the weights by update, and the files left in the working directory."""

    framework: str
    subject: str
    records: list[dict[str, Any]]
    ended: Ended
    weights: dict[int, dict[str, torch.Tensor]]
    elsewhere: list[str]


@pytest.fixture(scope="module", params=WATCHERS, ids="-".join)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    framework, subject = request.param
    folder, elsewhere = tmp_path_factory.mktemp("watched"), tmp_path_factory.mktemp("elsewhere")
    weights = {0: tiny.model(**drives.DROPOUT).state_dict()}

    def keep(update: int, model: nn.Module) -> None:
        weights[update] = copy.deepcopy(model.state_dict())

    settings = {"layers": [-1, 0, 1]} if subject == "geometry" else {}
    watch = watcher(framework, subject, folder, schedule=EACH, **settings)
    with contextlib.chdir(elsewhere):
        ended = DRIVES[framework](folder, [watch], hook=keep)
    records = read_records(folder / f"{subject}.jsonl")
    return Watched(framework, subject, records, ended, weights, os.listdir(elsewhere))


def test_leaves_no_trace_on_training(watched: Watched, plain: dict[str, Ended]) -> None:
    assert differences(plain[watched.framework], watched.ended) == []
    assert watched.elsewhere == []


@each_framework
def test_the_comparison_above_can_fail(framework: str, plain: dict[str, Ended], tmp_path: Path) -> None:
    """One global random number that is drawn changes what dropout does."""
    disturbed = DRIVES[framework](tmp_path, [], hook=lambda update, model: torch.rand(1) > 1)
    assert {"losses", "random states"} < set(differences(plain[framework], disturbed))


def test_measures_each_update_once_and_its_weights(watched: Watched) -> None:
    fresh, monitor = tiny.model(**drives.DROPOUT), GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW)
    records = watched.records[::3] if watched.subject == "geometry" else watched.records  # of the first layer
    assert [record["step"] for record in records] == list(range(UPDATES + 1))
    for record in records:
        fresh.load_state_dict(watched.weights[record["step"]])
        if watched.subject == "behaviour":
            assert record["held_out/loss"] == CompletionLoss(drives.completions())(fresh)["loss"]
        else:
            assert record["rankme"] == monitor.measure(fresh, record["step"])[0].metrics["rankme"]


@each_kind
def test_is_made_with_defaults_and_can_be_copied(framework: str, subject: str) -> None:
    """Hyperparameter search and strategies that spawn copy callbacks."""
    made = WATCHERS[framework, subject](tiny.probe(128) if subject == "geometry" else drives.measures())
    copied = copy.deepcopy(made)
    assert getattr(copied, "monitor", copied).state_dict() == getattr(made, "monitor", made).state_dict()


def both(framework: str, folder: Path, **changes: Any) -> list[Any]:
    return [watcher(framework, subject, folder, **changes) for subject in SUBJECTS]


@each_framework
def test_serves_two_runs_and_closes_twice(framework: str, tmp_path: Path) -> None:
    """The first run is stopped early; its last update is measured all the same."""
    watchers = both(framework, tmp_path, schedule=FAR)
    DRIVES[framework](tmp_path, watchers, hook=lambda update, model: update == 3)
    DRIVES[framework](tmp_path if framework == "loop" else tmp_path / "second", watchers)
    for watch in watchers * 2:
        getattr(watch, "monitor", watch).close()
    for subject in SUBJECTS:
        assert sorted(map(steps, tmp_path.rglob(f"{subject}*.jsonl"))) == [[0, 3], [0, UPDATES]]


@each_framework
def test_goes_on_from_a_checkpoint_in_its_own_file(framework: str, tmp_path: Path) -> None:
    """In one process, as in a notebook: the run fails, another is begun by accident, and the first is resumed twice."""
    drive = DRIVES[framework]

    def fail(update: int, model: nn.Module) -> None:
        if update == UPDATES:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        drive(tmp_path, both(framework, tmp_path), hook=fail, save=True)
    for subject in SUBJECTS if framework != "trainer" else ():  # which tells no callback of the failure
        with (tmp_path / f"{subject}.jsonl").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process might go on with it
    drive(tmp_path, both(framework, tmp_path))
    for begin in (3, 2):  # an update that is not due, and one that was measured just before it was saved
        drive(tmp_path, both(framework, tmp_path), resume=begin)
        for subject in SUBJECTS:
            assert steps(tmp_path / f"{subject}.jsonl") == steps(tmp_path / f"{subject}-2.jsonl") == MEASURED
    for subject in SUBJECTS:
        assert not (tmp_path / f"{subject}-3.jsonl").exists()
        lines = [json.loads(line) for line in (tmp_path / f"{subject}.jsonl").read_text().splitlines()]
        headers = [line for line in lines if line["kind"] == "header"]
        assert [header["resumed_from"] for header in headers] == [None, 3, 2]
        assert len({header["run_id"] for header in headers}) == 1
    with pytest.raises(ValueError, match=r"measured with probes = .* and now has .*: give it the same"):
        drive(tmp_path, [watcher(framework, "geometry", tmp_path, probe=tiny.probe(seed=9))], resume=3)


@each_framework
def test_two_of_a_kind_keep_their_files_apart(framework: str, tmp_path: Path) -> None:
    two = lambda: [watcher(framework, "geometry", tmp_path, layers=layer) for layer in (1, 2)]
    DRIVES[framework](tmp_path, two(), save=True)
    DRIVES[framework](tmp_path, two(), resume=3)
    for name, layer in (("geometry.jsonl", "layer1"), ("geometry-2.jsonl", "layer2")):
        records = read_records(tmp_path / name)
        assert [(record["step"], record["layer"]) for record in records] == [(step, layer) for step in MEASURED]


@pytest.mark.parametrize("framework", ADAPTERS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_two_that_a_checkpoint_could_not_tell_apart_are_refused(framework: str, subject: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"two callbacks measure|more than one stateful callback"):
        DRIVES[framework](tmp_path, [watcher(framework, subject, tmp_path) for _ in range(2)])


@pytest.mark.parametrize(
    ("framework", "bf16"), [("trainer", {"bf16": True}), ("lightning", {"precision": "bf16-mixed"})]
)
def test_measures_under_the_autocast_of_training(framework: str, bf16: dict[str, Any], tmp_path: Path) -> None:
    seen = []

    def look(model: nn.Module) -> dict[str, Any]:
        modes = {module.training for module in model.modules()}
        seen.append((modes, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return {"x": torch.tensor(1)}

    behaviour = watcher(framework, "behaviour", tmp_path, measures={"look": look})
    DRIVES[framework](tmp_path, [watcher(framework, "geometry", tmp_path), behaviour], max_steps=1, **bf16)
    assert seen == [({False}, False, True)] * 2
    record, model = read_records(tmp_path / "geometry.jsonl")[0], tiny.model(**drives.DROPOUT)
    wanted, other = (
        GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, precision=precision).measure(model, 0)[0]
        for precision in ("bf16", "fp32")
    )
    assert (record["precision"], record["rankme"]) == ("bf16", wanted.metrics["rankme"])
    assert record["rankme"] != other.metrics["rankme"]


def broken(framework: str, subject: str) -> dict[str, Any]:
    """Settings with which every measurement fails; what is tried before training does not."""

    def forward(backbone: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        if len(ids) > 1:
            raise KeyError(f"injected at {id(ids)}")
        return backbone(ids, mask)

    def fails(model: nn.Module) -> Any:
        raise KeyError(f"injected at {torch.rand(1)}")

    if subject == "geometry":
        return drives.read_by(framework, forward)
    return {"measures": {"broken": fails, "odd": lambda model: 3.0, "fine": lambda model: {"x": 1}}}


@each_kind
def test_a_measurement_that_fails_costs_its_numbers_or_ends_the_run_where_asked(
    framework: str, subject: str, plain: dict[str, Ended], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    fails = broken(framework, subject)
    ended = DRIVES[framework](tmp_path, [watcher(framework, subject, tmp_path, on_error="warn", **fails)])
    assert differences(plain[framework], ended) == []
    told = [str(warning.message) for warning in recwarn if "KeyError: 'injected" in str(warning.message)]
    assert len(told) == 1
    assert "was not measured at step 0" in told[0]
    assert "training goes on" in told[0]
    assert steps(tmp_path / f"{subject}.jsonl") == (MEASURED if subject == "behaviour" else [])  # the other measures
    with pytest.raises(KeyError, match="injected"):
        DRIVES[framework](tmp_path, [watcher(framework, subject, tmp_path, **fails)])


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *((subject, {"on_error": "ignore"}, ValueError, "on_error='ignore'") for subject in SUBJECTS),
    *((subject, {"schedule": 10}, ValueError, "schedule=10") for subject in SUBJECTS),
    *((subject, {"layer": 3}, TypeError, "layer") for subject in SUBJECTS),
    ("behaviour", {"measures": {}}, ValueError, "measures nothing"),
    ("behaviour", {"measures": [len]}, TypeError, "measures is a list"),
    ("behaviour", {"measures": {"a/b": len}}, ValueError, "'a/b'"),
    ("behaviour", {"measures": {"a": 3}}, TypeError, "measure 'a' is a int"),
]


@each_framework
@pytest.mark.parametrize(("subject", "changes", "error", "message"), WRONG)
def test_wrong_arguments_are_refused_at_construction(
    framework: str, subject: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        watcher(framework, subject, Path(), **changes)


FOREIGN = {"probe": ProbeSet.from_token_ids(torch.full((20, 5), tiny.VOCABULARY))}
UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("geometry", FOREIGN, f"token id {tiny.VOCABULARY}.*ends at {tiny.VOCABULARY - 1}"),
    ("geometry", {"layers": 9}, "3 blocks"),
    ("behaviour", {"measures": {"l": CompletionLoss(Completions([[1]], [[tiny.VOCABULARY]]))}}, "token id 120"),
]


@each_framework
@pytest.mark.parametrize(("subject", "changes", "message"), UNFIT)
def test_what_does_not_fit_the_model_is_refused_before_the_first_update(
    framework: str, subject: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    updates: list[int] = []
    watch = watcher(framework, subject, tmp_path, on_error="warn", **changes)
    with pytest.raises(ValueError, match=message):
        DRIVES[framework](tmp_path, [watch], hook=lambda update, model: updates.append(update))
    assert updates == []
