"""What every callback promises, and the plain loop with it, for geometry and behaviour alike."""

from __future__ import annotations

import contextlib
import copy
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
from drives import DRIVES, EACH, FAR, UPDATES, WATCHERS, Ended, differences, watcher
from torch import nn

from geomcallbacks import GeometryMonitor, ProbeSet, read_records
from geomcallbacks.behaviour import CompletionLoss, Completions

KINDS = [pytest.param(*kind, id="-".join(kind)) for kind in WATCHERS]
each_kind = pytest.mark.parametrize(("framework", "subject"), KINDS)
ADAPTERS = ("trainer", "lightning")


def steps(file: Path) -> list[int]:
    return [record["step"] for record in read_records(file)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Runs that nothing watches."""
    return {framework: drive(tmp_path_factory.mktemp(framework), []) for framework, drive in DRIVES.items()}


@dataclass(frozen=True)
class Watched:
    """A run of which every update was measured."""

    framework: str
    subject: str
    folder: Path
    ended: Ended
    weights: dict[int, dict[str, torch.Tensor]]
    elsewhere: list[str]  # files left in the working directory


@pytest.fixture(scope="module", params=WATCHERS, ids="-".join)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    framework, subject = request.param
    folder, elsewhere = tmp_path_factory.mktemp("watched"), tmp_path_factory.mktemp("elsewhere")
    weights = {0: tiny.model(**drives.DROPOUT).state_dict()}

    def keep(update: int, model: nn.Module) -> None:
        weights[update] = copy.deepcopy(model.state_dict())

    more = {"layers": [0, 1, -1]} if subject == "geometry" else {}
    with contextlib.chdir(elsewhere):
        watch = watcher(framework, subject, folder, schedule=EACH, **more)
        ended = DRIVES[framework](folder, [watch], hook=keep)
    return Watched(framework, subject, folder, ended, weights, os.listdir(elsewhere))


def test_leaves_no_trace_on_training(watched: Watched, plain: dict[str, Ended]) -> None:
    assert differences(plain[watched.framework], watched.ended) == []


@pytest.mark.parametrize("framework", DRIVES)
def test_the_comparison_above_can_fail(framework: str, plain: dict[str, Ended], tmp_path: Path) -> None:
    """One global random number that is drawn changes what dropout does."""
    disturbed = DRIVES[framework](tmp_path, [], hook=lambda update, model: torch.rand(1) > 1)
    assert {"losses", "random states"} < set(differences(plain[framework], disturbed))


def test_measures_each_update_once(watched: Watched) -> None:
    layers = 3 if watched.subject == "geometry" else 1
    wanted = [step for step in range(UPDATES + 1) for _ in range(layers)]
    assert steps(watched.folder / f"{watched.subject}.jsonl") == wanted


def test_measures_the_weights_of_the_update(watched: Watched) -> None:
    fresh, monitor = tiny.model(**drives.DROPOUT), GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW)
    for record in read_records(watched.folder / f"{watched.subject}.jsonl"):
        fresh.load_state_dict(watched.weights[record["step"]])
        if watched.subject == "behaviour":
            assert record["held_out/loss"] == CompletionLoss(drives.completions())(fresh)["loss"]
        elif record["layer"] == "layer3":
            assert record["rankme"] == monitor.measure(fresh, record["step"])[0].metrics["rankme"]


def test_writes_to_the_folder_of_the_run_alone(watched: Watched) -> None:
    assert watched.elsewhere == []
    assert f"{watched.subject}.jsonl" in os.listdir(watched.folder)


@each_kind
def test_is_made_with_defaults_and_can_be_copied(framework: str, subject: str) -> None:
    """Hyperparameter search and strategies that spawn copy callbacks."""
    made = WATCHERS[framework, subject](tiny.probe(128) if subject == "geometry" else drives.measures())
    copied = copy.deepcopy(made)
    assert getattr(copied, "monitor", copied).state_dict() == getattr(made, "monitor", made).state_dict()


@each_kind
def test_serves_two_runs_and_closes_twice(framework: str, subject: str, tmp_path: Path) -> None:
    """The first run is stopped early; the last update is measured all the same."""
    watch = watcher(framework, subject, tmp_path, schedule=FAR)
    DRIVES[framework](tmp_path, [watch], hook=lambda update, model: update == 3)
    DRIVES[framework](tmp_path if framework == "loop" else tmp_path / "second", [watch])
    for _ in range(2):
        getattr(watch, "monitor", watch).close()
    assert sorted(map(steps, tmp_path.rglob(f"{subject}*.jsonl"))) == [[0, 3], [0, UPDATES]]


@each_kind
def test_goes_on_from_a_checkpoint_in_its_own_file(framework: str, subject: str, tmp_path: Path) -> None:
    """In one process, as in a notebook: the run fails, another is begun by accident, and the first is resumed twice."""
    drive = DRIVES[framework]

    def fail(update: int, model: nn.Module) -> None:
        if update == UPDATES:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        drive(tmp_path, [watcher(framework, subject, tmp_path)], hook=fail, save=True)
    drive(tmp_path, [watcher(framework, subject, tmp_path)])
    for begin in (3, 2):  # an update that is not due, and one that was measured just before it was saved
        drive(tmp_path, [watcher(framework, subject, tmp_path)], resume=begin)
        for name in (f"{subject}.jsonl", f"{subject}-2.jsonl"):
            assert steps(tmp_path / name) == [0, 2, 4]
    assert not (tmp_path / f"{subject}-3.jsonl").exists()
    lines = [json.loads(line) for line in (tmp_path / f"{subject}.jsonl").read_text().splitlines()]
    headers = [line for line in lines if line["kind"] == "header"]
    assert [header["resumed_from"] for header in headers] == [None, 3, 2]
    assert len({header["run_id"] for header in headers}) == 1
    if subject == "geometry":
        with pytest.raises(ValueError, match=r"measured with probes = .* and now has .*: give it the same"):
            drive(tmp_path, [watcher(framework, subject, tmp_path, probe=tiny.probe(seed=9))], resume=3)


@pytest.mark.parametrize("framework", DRIVES)
def test_two_of_a_kind_keep_their_files_apart(framework: str, tmp_path: Path) -> None:
    both = lambda: [watcher(framework, "geometry", tmp_path, layers=layer) for layer in (1, 2)]
    DRIVES[framework](tmp_path, both(), save=True)
    DRIVES[framework](tmp_path, both(), resume=3)
    for name, layer in (("geometry.jsonl", "layer1"), ("geometry-2.jsonl", "layer2")):
        records = read_records(tmp_path / name)
        assert [(record["step"], record["layer"]) for record in records] == [(step, layer) for step in (0, 2, 4)]


@pytest.mark.parametrize("framework", ADAPTERS)
@pytest.mark.parametrize("subject", ["geometry", "behaviour"])
def test_two_that_a_checkpoint_could_not_tell_apart_are_refused(framework: str, subject: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"two callbacks measure|more than one stateful callback"):
        DRIVES[framework](tmp_path, [watcher(framework, subject, tmp_path) for _ in range(2)])


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
def test_a_measurement_that_fails_is_told_of_once(
    framework: str, subject: str, plain: dict[str, Ended], tmp_path: Path
) -> None:
    watch = watcher(framework, subject, tmp_path, on_error="warn", **broken(framework, subject))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ended = DRIVES[framework](tmp_path, [watch])
    assert differences(plain[framework], ended) == []
    told = [str(warning.message) for warning in caught if "was not measured at step 0" in str(warning.message)]
    assert all("training goes on" in message for message in told)
    assert sum("KeyError: 'injected" in message for message in told) == 1
    records = read_records(tmp_path / f"{subject}.jsonl")
    if subject == "geometry":
        assert records == []
    else:  # what does not fail is measured
        assert len(told) == 2
        assert [(record["step"], record["fine/x"]) for record in records] == [(0, 1.0), (2, 1.0), (4, 1.0)]


@each_kind
def test_a_measurement_that_fails_ends_the_run_where_asked(framework: str, subject: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="injected"):
        DRIVES[framework](tmp_path, [watcher(framework, subject, tmp_path, **broken(framework, subject))])


@each_kind
@pytest.mark.parametrize(
    ("of", "changes", "error", "message"),
    [
        ("both", {"on_error": "ignore"}, ValueError, "on_error='ignore'"),
        ("both", {"schedule": 10}, ValueError, "schedule=10"),
        ("both", {"layer": 3}, TypeError, "layer"),
        ("geometry", {"alpha_window": (5, 2)}, ValueError, "window"),
        ("geometry", {"precision": "fp8"}, ValueError, "precision='fp8'"),
        ("behaviour", {"measures": {}}, ValueError, "measures nothing"),
        ("behaviour", {"measures": [len]}, TypeError, "measures is a list"),
        ("behaviour", {"measures": {"a/b": len}}, ValueError, "'a/b'"),
        ("behaviour", {"measures": {"": len}}, ValueError, "''"),
        ("behaviour", {"measures": {"a": 3}}, TypeError, "measure 'a' is a int"),
    ],
)
def test_bad_settings_are_refused_at_construction(
    framework: str, subject: str, of: str, changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    if of in (subject, "both"):
        with pytest.raises(error, match=message):
            watcher(framework, subject, tmp_path, **changes)


FOREIGN = {"probe": ProbeSet.from_token_ids(torch.full((20, 5), tiny.VOCABULARY))}
UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("geometry", FOREIGN, f"token id {tiny.VOCABULARY}.*ends at {tiny.VOCABULARY - 1}"),
    ("geometry", {"alpha_window": (11, 60)}, r"alpha_window=\(11, 60\).*alpha_window=\("),
    ("geometry", {"layers": "gpt_neox.layers.9"}, "did you mean"),
    ("geometry", {"layers": 9}, "3 blocks"),
    ("behaviour", {"measures": {"l": CompletionLoss(Completions([[1]], [[tiny.VOCABULARY]]))}}, "token id 120"),
]


@pytest.mark.parametrize("framework", DRIVES)
@pytest.mark.parametrize(("subject", "changes", "message"), UNFIT)
def test_what_does_not_fit_the_model_is_refused_before_the_first_update(
    framework: str, subject: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    updates: list[int] = []
    watch = watcher(framework, subject, tmp_path, on_error="warn", **changes)
    with pytest.raises(ValueError, match=message):
        DRIVES[framework](tmp_path, [watch], hook=lambda update, model: updates.append(update))
    assert updates == []
