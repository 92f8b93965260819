"""What reads `callback_metrics` of a Lightning run reads values of the present weights; counters and folders that other
callbacks and tuners move.
"""

from __future__ import annotations

import math
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from drives import EACH, FAR, MEASURED, Module, batches, each_checkpoint, fit, steps, watcher
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.record import read_lines


def geometry(**settings: Any) -> Any:
    return watcher("lightning", "geometry", Path(), **settings)


def of_now(module: L.LightningModule) -> float:
    watch = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, precision="fp32")
    return watch.measure(module, 0)[0].metrics["rankme"]


class Validated(Module):
    def val_dataloader(self) -> Any:
        return batches(shuffle=False)


@pytest.mark.parametrize(
    "when",
    [
        {"every_n_train_steps": 3},
        {"every_n_epochs": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"train_time_interval": timedelta(0)},
    ],
    ids=["steps", "validation", "epoch end", "time"],
)
@pytest.mark.parametrize("reads", ["monitor", "filename"])
def test_a_checkpoint_is_named_by_its_own_weights(when: dict[str, Any], reads: str, tmp_path: Path) -> None:
    """The schedule has the first update and the last alone; each file is measured when it is written."""
    name = {"filename": "{step}-{geometry/rankme:.9f}", "auto_insert_metric_name": False}
    monitored = {"monitor": "geometry/rankme", "mode": "max"} if reads == "monitor" else {}
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, **name, **monitored, **when)
    fit(tmp_path, [geometry(schedule=FAR), keep], Validated(), max_steps=-1, max_epochs=2, accumulate_grad_batches=4)
    files = sorted((tmp_path / "kept").rglob("*.ckpt"))
    assert files
    module = Validated()
    for file in files:
        module.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        assert float(file.stem.rpartition("-")[2]) == pytest.approx(of_now(module), rel=1e-6)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_early_stopping_reads_the_present_weights(first: str, tmp_path: Path) -> None:
    seen = []

    class Reads(EarlyStopping):
        def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
            seen.append((float(trainer.callback_metrics["geometry/rankme"]), of_now(trainer.lightning_module)))
            super()._run_early_stopping_check(trainer)

    stop = Reads("geometry/rankme", mode="max", patience=1)
    pair = [geometry(schedule=FAR), stop]
    fit(tmp_path, pair if first == "ours" else pair[::-1], Validated(), max_steps=-1, max_epochs=6)
    assert len(seen) >= 2
    assert [value for value, _ in seen] == pytest.approx([now for _, now in seen], rel=1e-6)


@pytest.mark.parametrize("reader", ["early stopping", "checkpoint"])
def test_a_run_that_a_callback_behind_ours_ends_is_read_too(reader: str, tmp_path: Path) -> None:
    """No validation, and no last batch: as a Timer, or a budget of time, ends it."""

    class Ends(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    kept = ModelCheckpoint(tmp_path / "kept", monitor="geometry/rankme", mode="max")
    read = EarlyStopping("geometry/rankme", mode="max") if reader == "early stopping" else kept
    callbacks = [geometry(schedule=FAR), read, Ends()]
    _, module = fit(tmp_path, callbacks, max_steps=-1, max_epochs=2, accumulate_grad_batches=1)
    found = read.best_score if isinstance(read, EarlyStopping) else read.best_model_score
    assert float(found) == pytest.approx(of_now(module), rel=1e-6)


@pytest.mark.parametrize("turn", [1, -1])
def test_one_of_two_callbacks_is_read(turn: int, tmp_path: Path) -> None:
    pair = [geometry(probe={"own": tiny.probe()}), geometry(probe={"other": tiny.probe(seed=9)}, path=tmp_path / "o")]
    stop = EarlyStopping("geometry/own/rankme", mode="max")
    _, module = fit(tmp_path, [*pair[::turn], stop], Validated(), max_steps=-1, max_epochs=1)
    assert float(stop.best_score) >= of_now(module) * (1 - 1e-6)
    assert stop.wait_count == 0  # read once


def test_a_scheduler_reads_the_present_weights(tmp_path: Path) -> None:
    class Plateau(Module):
        def configure_optimizers(self) -> Any:
            optimiser = torch.optim.AdamW(self.parameters(), lr=1e-2)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max")
            step, module = scheduler.step, self
            scheduler.step = lambda value, *rest: (seen.append((float(value), of_now(module))), step(value, *rest))
            reads = {"scheduler": scheduler, "monitor": "geometry/rankme", "interval": "step", "frequency": 3}
            return {"optimizer": optimiser, "lr_scheduler": reads}

    seen: list[tuple[float, float]] = []
    fit(tmp_path, [geometry(schedule=FAR)], Plateau(), max_steps=7, accumulate_grad_batches=1)
    assert len(seen) == 2
    assert [value for value, _ in seen] == pytest.approx([now for _, now in seen], rel=1e-6)


def test_values_of_weights_that_are_no_more_are_absent(tmp_path: Path) -> None:
    seen = {}

    class Looks(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            seen[trainer.global_step] = "geometry/rankme" in trainer.callback_metrics

    trainer, module = fit(tmp_path, [geometry(), Looks()], accumulate_grad_batches=1)
    assert seen == {0: True, 1: False, 2: True, 3: False}
    assert float(trainer.callback_metrics["geometry/rankme"]) == pytest.approx(of_now(module), rel=1e-6)


def test_a_key_that_is_none_is_refused_before_the_first_update(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="geometry/layer1/rankme")
    with pytest.raises(ValueError, match=r"'geometry/layer1/rankme' is none of what is logged: .*geometry/rankme"):
        fit(tmp_path, [geometry(), keep])


def test_a_failed_measurement_is_ranked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomcallbacks.monitor.measure_probe", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match="not measured"):
        trainer, _ = fit(tmp_path, [geometry(on_error="warn")])
    assert math.isnan(trainer.callback_metrics["geometry/rankme"])
    assert trainer.global_step == 4


# --- counters and folders -------------------------------------------------------------------------------------------


def updates_of(*callbacks: Any, tune: str = "", **settings: Any) -> tuple[list[int], dict[str, Any], list[float]]:
    """Updates of the records, settings of the header, and RankMe, of a run that may be tuned before."""
    L.seed_everything(3, verbose=False)
    folder = Path(settings.pop("folder"))
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu")
    logs = dict(default_root_dir=folder, logger=CSVLogger(folder, name="", version=""), log_every_n_steps=1)
    trainer = L.Trainer(**quiet | logs | settings, callbacks=[geometry(schedule=EACH), *callbacks])

    class Tuned(Validated):
        batch_size, lr = 2, 1e-2

        def train_dataloader(self) -> Any:
            return batches(shuffle=False)

    module = Tuned()
    if tune == "batch size":
        Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=2, init_val=2)
    elif tune:
        Tuner(trainer).lr_find(module, num_training=5)
        module.lr = 1e-2
    L.seed_everything(4, verbose=False)
    trainer.fit(module)
    records = read_records(folder / "geometry.jsonl")
    header = read_lines(folder / "geometry.jsonl")[0]
    return [r["step"] for r in records], header["settings"], [r["rankme"] for r in records]


@pytest.mark.parametrize("tune", ["batch size", "learning rate"])
def test_tuning_before_a_run_moves_no_update(tune: str, tmp_path: Path) -> None:
    plain = updates_of(folder=tmp_path / "plain", max_steps=5)
    tuned = updates_of(folder=tmp_path / "tuned", tune=tune, max_steps=5)
    assert plain[0] == tuned[0] == [0, 1, 2, 3, 4, 5]
    assert plain[2][0] == tuned[2][0]  # the weights were put back


def test_a_learning_rate_that_is_sought_between_epochs_moves_no_update(tmp_path: Path) -> None:
    """It puts the run back where it was, and every callback's state with it."""

    class Seeks(LearningRateFinder):
        def on_fit_start(self, *args: Any) -> None: ...

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.lr_find(trainer, pl_module)

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    settings = dict(max_epochs=3, accumulate_grad_batches=8, enable_checkpointing=True)
    updates, _, _ = updates_of(Seeks(num_training_steps=3), keep, folder=tmp_path, **settings)
    assert updates == list(range(7))
    for file in tmp_path.glob("step=*.ckpt"):
        saved = torch.load(file, weights_only=True)
        (state,) = [state for name, state in saved["callbacks"].items() if "GeometryCallback" in name]
        assert (state["step"], state["measured"]) == (saved["global_step"],) * 2


@pytest.mark.parametrize("schedule", [{0: 8, 1: 1}, {0: 1, 1: 5}, {0: 2, 2: 3}])
def test_the_length_of_a_run_whose_accumulation_changes(schedule: dict[int, int], tmp_path: Path) -> None:
    """16 batches in an epoch, of which there are four."""
    each = [max((key, value) for key, value in schedule.items() if key <= epoch)[1] for epoch in range(4)]
    wanted = sum(-(-16 // number) for number in each)
    accumulate = GradientAccumulationScheduler(schedule)
    updates, settings, _ = updates_of(accumulate, folder=tmp_path, max_epochs=4)
    assert (updates[-1], settings["total_steps"]) == (wanted, wanted)


def test_a_resumed_run_goes_on_in_its_file_though_its_logger_takes_another_folder(tmp_path: Path) -> None:
    keep = lambda: each_checkpoint(tmp_path)
    logs = dict(logger=CSVLogger(tmp_path))  # version_0, then version_1
    fit(tmp_path, [geometry(), keep()], **logs)
    later = dict(logger=CSVLogger(tmp_path), max_steps=6)
    fit(tmp_path, [geometry(), keep()], resume=tmp_path / "step=3.ckpt", **later)
    (file,) = tmp_path.rglob("geometry*.jsonl")
    assert file.parent.name == "version_0"
    assert steps(file) == [0, 2, 4, 6]


def test_unknown_loggers_are_written_in_the_thread_of_training(tmp_path: Path) -> None:
    """One that is bound to its thread, as sqlite is, would lose all rows."""

    class Bound(Logger):
        name, version = "bound", 0

        def __init__(self) -> None:
            self.thread, self.rows = threading.get_ident(), []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            assert threading.get_ident() == self.thread
            self.rows += [step] if "geometry/rankme" in metrics else []

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    bound = Bound()
    fit(tmp_path, [geometry()], logger=[bound, TensorBoardLogger(tmp_path)])
    assert bound.rows == MEASURED
