"""What is special to Lightning: its own ideas of the last update, and what other callbacks see."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from drives import EACH, FAR, Module, batches, fit, loss_of, steps, watcher
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from geomcallbacks import read_records


def callback(**settings: Any) -> Any:
    return watcher("lightning", "geometry", Path(), **settings)


class Endless(IterableDataset[Any]):
    """A stream without a length."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(zip(*tiny.rows(8), strict=True))


class TwoOptimisers(Module):
    """Manual optimisation with two optimisers: `global_step` counts both."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(loss_of(self.network, batch))
        for optimiser in self.optimizers():
            optimiser.step()
            optimiser.zero_grad()

    def configure_optimizers(self) -> Any:
        weights = list(self.parameters())
        return [torch.optim.SGD(weights[:4], lr=0.1), torch.optim.SGD(weights[4:], lr=0.1)]


class StopsAtValidation(Module):
    def val_dataloader(self) -> Any:
        return batches(shuffle=False)

    def configure_callbacks(self) -> Any:
        return EarlyStopping("val/loss", stopping_threshold=1e9, mode="min")


@pytest.mark.parametrize(
    ("module", "settings", "wanted"),
    [  # 32 rows, two a batch, two batches an update
        (Module, {"max_epochs": 2}, [0, 16]),
        (Module, {"max_steps": 3, "data": DataLoader(Endless(), batch_size=2)}, [0, 3]),
        (TwoOptimisers, {"max_steps": 8, "accumulate_grad_batches": 1}, [0, 4]),
        (StopsAtValidation, {"max_epochs": 9}, [0, 8]),
        (StopsAtValidation, {"min_epochs": 2, "max_epochs": 9}, [0, 16]),
    ],
    ids=["epochs", "stream", "two optimisers", "stopped by a validation", "stop that waits for min_epochs"],
)
def test_the_last_update_of_every_kind_of_run_is_measured_once(
    module: type[Module], settings: dict[str, Any], wanted: list[int], tmp_path: Path
) -> None:
    fit(tmp_path, [callback(schedule=FAR)], module(), **{"max_steps": -1} | settings)
    assert steps(tmp_path / "geometry.jsonl") == wanted


def test_uneven_accumulation_counts_updates_not_batches(tmp_path: Path) -> None:
    """16 batches in groups of five: Lightning steps on the last, shorter group too."""
    fit(tmp_path, [callback(schedule=EACH)], accumulate_grad_batches=5, max_steps=-1, max_epochs=1)
    assert steps(tmp_path / "geometry.jsonl") == [0, 1, 2, 3, 4]


def test_other_callbacks_and_the_progress_bar_see_geometry(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="geometry/rankme", mode="max", every_n_train_steps=2, filename="{step}")
    made, _ = fit(tmp_path, [callback(), best])
    records = {record["step"]: record["rankme"] for record in read_records(tmp_path / "geometry.jsonl")}
    assert float(best.best_model_score) == pytest.approx(max(records[2], records[4]))
    assert made.progress_bar_metrics["geometry/rankme"] == records[4]
    early = EarlyStopping("geometry/rankme", stopping_threshold=0.0, mode="max", check_on_train_epoch_end=True)
    made, _ = fit(tmp_path / "stop", [callback(), early], max_steps=-1, max_epochs=9)
    assert made.current_epoch == 1


def test_what_has_no_value_is_nan_for_other_callbacks(tmp_path: Path) -> None:
    """An old value would be taken for that of the present weights."""

    class Breaks(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *rest: Any) -> None:
            if trainer.global_step == 3:
                pl_module.network.gpt_neox.final_layer_norm.weight.data.fill_(float("nan"))

    behaviour = watcher("lightning", "behaviour", tmp_path, measures={"own": lambda model: {"none": float("nan")}})
    made, _ = fit(tmp_path, [Breaks(), callback(), behaviour])
    assert read_records(tmp_path / "geometry.jsonl")[-1]["rankme"] is None
    assert made.callback_metrics["geometry/rankme"].isnan()
    assert made.callback_metrics["behaviour/own/none"].isnan()


def test_fast_dev_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, [callback()], fast_dev_run=True)
    assert list(tmp_path.rglob("geometry*")) == []
