"""In every tracker our rows lie on the x axis of the loss and hold what the file holds; loss rows stay as they are."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drives
import pytest
import tiny
import wandb
import wandb_file
from drives import DRIVES, watcher
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from geomcallbacks import read_records
from geomcallbacks.metrics import METRIC_NAMES

MEASURED = [0, 2, 4]
X_AXIS = {"trainer": "train/global_step", "lightning": "trainer/global_step"}


@dataclass(frozen=True)
class Tracked:
    """A run whose geometry and behaviour went to W&B, TensorBoard and, under Lightning, CSV."""

    framework: str
    folder: Path
    losses: list[dict[str, Any]]
    wandb: list[dict[str, Any]]
    tensorboard: EventAccumulator

    def records(self, subject: str) -> list[dict[str, Any]]:
        return read_records(self.folder / f"{subject}.jsonl")


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
    return Tracked(
        framework, folder, ended.losses, wandb_file.history(folder), EventAccumulator(str(events.parent)).Reload()
    )


SUBJECTS = {"geometry": "geometry/rankme", "behaviour": "behaviour/held_out/loss"}
each_subject = pytest.mark.parametrize(("subject", "key"), SUBJECTS.items())


def values(record: dict[str, Any]) -> dict[str, float]:
    """What a tracker is to be given of a record, by its key."""
    if "held_out/loss" in record:
        return {f"behaviour/{name}": value for name, value in record.items() if name not in ("step", "seconds")}
    return {f"geometry/{name}": record[name] for name in METRIC_NAMES}


@each_subject
def test_rows_are_those_of_the_file(tracked: Tracked, subject: str, key: str) -> None:
    records = tracked.records(subject)
    rows = [row for row in tracked.wandb if key in row]
    assert [row[X_AXIS[tracked.framework]] for row in rows] == [record["step"] for record in records] == MEASURED
    for row, record in zip(rows, records, strict=True):
        ours = {name: value for name, value in row.items() if subject in name}
        if subject == "geometry":
            assert ours.pop("geometry/log10_eigenvalues")["_type"] == "histogram"
        assert ours == values(record)
        assert set(ours) <= set(tracked.tensorboard.Tags()["scalars"])
    drawn = tracked.tensorboard.Scalars(key)
    assert [event.step for event in drawn] == MEASURED
    assert [event.value for event in drawn] == pytest.approx([values(record)[key] for record in records])


def test_rows_of_the_loss_stay_as_they_are(tracked: Tracked, tmp_path: Path) -> None:
    plain = DRIVES[tracked.framework](tmp_path, []).losses
    assert tracked.losses == plain
    losses = {row["step"]: float(row["loss"]) for row in plain if "loss" in row}
    rows = [row for row in tracked.wandb if "train/loss" in row]
    drawn = {int(row[X_AXIS[tracked.framework]]): row["train/loss"] for row in rows}
    # Lightning writes the loss of update s at s - 1.
    assert list(drawn) == ([1, 2, 3, 4] if tracked.framework == "trainer" else [0, 1, 2, 3])
    assert list(drawn.values()) == pytest.approx(list(losses.values()))
    assert [event.step for event in tracked.tensorboard.Scalars("train/loss")] == list(drawn)


@each_subject
def test_rows_of_the_framework_s_own_log(subject: str, key: str, tmp_path: Path) -> None:
    """`log_history` of Trainer, `callback_metrics` and CSVLogger of Lightning."""
    made = drives.make_trainer(tmp_path, [watcher("trainer", subject, tmp_path)])
    made.train()
    rows = [row for row in made.state.log_history if key in row]
    records = read_records(tmp_path / f"{subject}.jsonl")
    assert [(row["step"], row[key]) for row in rows] == [(r["step"], values(r)[key]) for r in records]

    module, _ = drives.fit(tmp_path / "fit", [watcher("lightning", subject, tmp_path)])
    records = read_records(tmp_path / "fit" / f"{subject}.jsonl")
    with (tmp_path / "fit" / "metrics.csv").open() as file:
        written = [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row[key]]
    assert written == [(r["step"], values(r)[key]) for r in records]
    assert float(module.callback_metrics[key]) == pytest.approx(values(records[-1])[key])


@pytest.mark.parametrize("framework", X_AXIS)
def test_keys_name_probe_and_layer_where_there_are_several(framework: str, tmp_path: Path) -> None:
    probes = {"web": tiny.probe(seed=1), "code": tiny.probe(seed=2)}
    watch = watcher(framework, "geometry", tmp_path, probe=probes, layers=[0, 1])
    if framework == "trainer":
        made = drives.make_trainer(tmp_path, [watch])
        made.train()
        keys = {key for row in made.state.log_history for key in row}
    else:
        keys = set(drives.fit(tmp_path, [watch])[0].callback_metrics)
    ours = {key for key in keys if key.startswith("geometry/") and key.endswith("/rankme")}
    assert ours == {f"geometry/{probe}/{layer}/rankme" for probe in probes for layer in ("layer0", "layer1")}
