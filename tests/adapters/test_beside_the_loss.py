"""In every tracker our rows lie on the x axis of the loss and hold what the file holds; loss rows stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wandb_file
from drives import DRIVES, MEASURED, SUBJECTS, UPDATES, Ended, watcher
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import wandb
from geomcallbacks import read_records
from geomcallbacks.metrics import METRIC_NAMES

X_AXIS = {"trainer": "train/global_step", "lightning": "trainer/global_step"}


@dataclass(frozen=True)
class Tracked:
    """A run whose geometry and behaviour went to W&B, TensorBoard and the framework's own log."""

    framework: str
    folder: Path
    ended: Ended
    wandb: list[dict[str, Any]]
    tensorboard: EventAccumulator


@pytest.fixture(scope="module", params=X_AXIS)
def tracked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    framework, folder = request.param, tmp_path_factory.mktemp("tracked")
    both = [watcher(framework, subject, folder, path=folder / f"{subject}.jsonl") for subject in SUBJECTS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(folder))
        wandb.teardown()  # it reads WANDB_DIR once in a process, and other tests have their own
        if framework == "trainer":
            ended = DRIVES[framework](folder, both, report_to=["wandb", "tensorboard"])
        else:
            loggers = [WandbLogger(save_dir=folder, offline=True), TensorBoardLogger(folder / "runs")]
            ended = DRIVES[framework](folder, both, logger=[CSVLogger(folder, name="", version=""), *loggers])
        wandb.finish()
        wandb.teardown()
    [events] = (folder / "runs").rglob("events*")
    drawn = EventAccumulator(str(events.parent)).Reload()
    return Tracked(framework, folder, ended, wandb_file.history(folder), drawn)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_rows_are_those_of_the_file(tracked: Tracked, subject: str) -> None:
    given = ("step", "seconds")
    records = read_records(tracked.folder / f"{subject}.jsonl")
    names = METRIC_NAMES if subject == "geometry" else [name for name in records[0] if name not in given]
    wanted = [{f"{subject}/{name}": record[name] for name in names} for record in records]
    assert [record["step"] for record in records] == MEASURED
    of_us = lambda row: {key: value for key, value in row.items() if subject in key}

    rows = [row for row in tracked.wandb if of_us(row)]
    assert [row[X_AXIS[tracked.framework]] for row in rows] == MEASURED
    histograms = [row.pop("geometry/log10_eigenvalues")["_type"] for row in rows if subject == "geometry"]
    assert histograms == ["histogram"] * len(histograms)
    assert list(map(of_us, rows)) == wanted

    rows = [row for row in tracked.ended.ours if of_us(row)]
    assert [row["step"] for row in rows] == MEASURED
    assert list(map(of_us, rows)) == wanted

    for key in wanted[0]:
        events = tracked.tensorboard.Scalars(key)
        assert [event.step for event in events] == MEASURED
        assert [event.value for event in events] == pytest.approx([row[key] for row in wanted])


def test_rows_of_the_loss_stay_as_they_are(tracked: Tracked, tmp_path: Path) -> None:
    plain = DRIVES[tracked.framework](tmp_path, []).losses
    assert tracked.ended.losses == plain
    losses = [row[key] for row in plain for key in ("loss", "train/loss") if key in row]
    rows = [row for row in tracked.wandb if "train/loss" in row]
    events = tracked.tensorboard.Scalars("train/loss")
    # Lightning writes the loss of update s at s - 1.
    wanted = list(range(1, UPDATES + 1)) if tracked.framework == "trainer" else list(range(UPDATES))
    assert [row[X_AXIS[tracked.framework]] for row in rows] == [event.step for event in events] == wanted
    assert [row["train/loss"] for row in rows] == pytest.approx(losses)
