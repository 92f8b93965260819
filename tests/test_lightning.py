"""GeometryCallback under Lightning: it leaves no trace on training, and its rows lie beside the loss."""

from __future__ import annotations

import csv
import itertools

import lightning as L
import pytest
import tiny
import torch
import wandb
import wandb_file
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from geomcallbacks import GeometryMonitor, ProbeSet, Schedule, read_records
from geomcallbacks.lightning import GeometryCallback
from geomcallbacks.metrics import METRIC_NAMES

UPDATES = 6
DROPOUT = dict(attention_dropout=0.1, hidden_dropout=0.1)


class Module(L.LightningModule):
    """A causal language model under a Lightning module, as recipes have it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny.model(**DROPOUT)
        self.network.gradient_checkpointing_enable()
        self.losses: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = self.network(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss
        self.losses.append(loss.item())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.network(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class TwoOptimisers(Module):
    """Manual optimisation with two optimisers: `global_step` counts both."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimiser in self.optimizers():
            optimiser.zero_grad()
        loss = self.network(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss
        self.manual_backward(loss)
        for optimiser in self.optimizers():
            optimiser.step()

    def configure_optimizers(self):
        weights = list(self.parameters())
        return [torch.optim.SGD(weights[:4], lr=0.1), torch.optim.SGD(weights[4:], lr=0.1)]


class Endless(IterableDataset):
    """A stream without a length."""

    def __iter__(self):
        return itertools.cycle(zip(*tiny.rows(8), strict=True))


def loader(shuffle=True):
    return DataLoader(TensorDataset(*tiny.rows(48, seed=5)), batch_size=2, shuffle=shuffle)


def callback(**settings):
    return GeometryCallback(tiny.probe(), **tiny.watching(**settings))


def trainer(folder, callbacks=(), **settings):
    defaults = dict(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=UPDATES,
        accumulate_grad_batches=4,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        logger=False,
    )
    return L.Trainer(**{**defaults, **settings}, callbacks=list(callbacks))


def fit(folder, callbacks=(), module=None, ckpt_path=None, train=None, **settings):
    L.seed_everything(1, verbose=False)
    module = module or Module()
    made = trainer(folder, callbacks, **settings)
    made.fit(module, loader() if train is None else train, ckpt_path=ckpt_path)
    return made, module


def steps(folder):
    return [record["step"] for record in read_records(folder / "geometry.jsonl")]


def loss_rows(folder):
    [file] = folder.glob("**/metrics.csv")
    rows = list(csv.DictReader(file.open()))
    return [(row["step"], row["train/loss"]) for row in rows if row["train/loss"]]


def test_training_is_bit_identical_with_and_without(tmp_path):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    a, module_a = fit(plain, logger=CSVLogger(plain))
    b, module_b = fit(
        watched, [callback(layers=[0, 1, -1], path=watched / "geometry.jsonl")], logger=CSVLogger(watched)
    )
    for (name, x), y in zip(module_a.state_dict().items(), module_b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    state_a, state_b = a.optimizers[0].state_dict()["state"], b.optimizers[0].state_dict()["state"]
    assert all(torch.equal(state_a[i][k], state_b[i][k]) for i in state_a for k in state_a[i])
    assert module_a.losses == module_b.losses
    assert len(module_a.losses) == 4 * UPDATES
    assert loss_rows(plain) == loss_rows(watched)
    assert loss_rows(plain)
    assert sorted(set(steps(watched))) == [0, 2, 4, 6]


def test_steps_agree_in_wandb_file_record_file_and_loggers(tmp_path):
    loggers = [
        WandbLogger(save_dir=tmp_path, offline=True),
        CSVLogger(tmp_path / "csv"),
        TensorBoardLogger(tmp_path / "tb"),
    ]
    schedule = Schedule(every=3, per_decade=0, at=(1,))
    fit(tmp_path, [callback(schedule=schedule, path=tmp_path / "geometry.jsonl")], logger=loggers, log_every_n_steps=1)
    wandb.finish()
    rows = wandb_file.history(tmp_path)
    geometry = [row for row in rows if "geometry/rankme" in row]
    # Lightning writes the loss of update s at s - 1; both lie on trainer/global_step.
    assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == [0, 1, 2, 3, 4, 5]
    assert [row["trainer/global_step"] for row in geometry] == [0, 1, 3, 6]
    records = read_records(tmp_path / "geometry.jsonl")
    assert [record["step"] for record in records] == [0, 1, 3, 6]
    for row, record in zip(geometry, records, strict=True):
        assert all(row[f"geometry/{name}"] == record[name] for name in METRIC_NAMES)
        assert row["geometry/log10_eigenvalues"]["_type"] == "histogram"
    [file] = (tmp_path / "csv").glob("**/metrics.csv")
    written = [row for row in csv.DictReader(file.open()) if row["geometry/rankme"]]
    assert [(int(row["step"]), float(row["geometry/rankme"])) for row in written] == [
        (record["step"], record["rankme"]) for record in records
    ]
    [events] = (tmp_path / "tb").glob("**/events*")
    scalars = EventAccumulator(str(events.parent)).Reload().Scalars("geometry/rankme")
    assert [event.step for event in scalars] == [0, 1, 3, 6]


def test_model_checkpoint_and_early_stopping_can_monitor_geometry(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="geometry/rankme", mode="max", every_n_train_steps=2, filename="{step}")
    made, _ = fit(tmp_path, [callback(), best])
    records = {record["step"]: record["rankme"] for record in read_records(tmp_path / "geometry.jsonl")}
    assert float(best.best_model_score) == pytest.approx(max(value for step, value in records.items() if step > 0))
    assert float(made.callback_metrics["geometry/rankme"]) == pytest.approx(records[UPDATES])
    stop = EarlyStopping("geometry/rankme", stopping_threshold=0.0, mode="max", check_on_train_epoch_end=True)
    made, _ = fit(tmp_path / "stop", [callback(), stop], max_steps=-1, max_epochs=50)
    assert made.current_epoch < 49


def test_last_update_of_every_kind_of_run_is_measured_once(tmp_path):
    far = dict(schedule=Schedule(every=1000, per_decade=0))
    fit(tmp_path / "epochs", [callback(**far)], max_steps=-1, max_epochs=2)
    assert steps(tmp_path / "epochs") == [0, 12]  # 48 rows, 2 a batch, 4 batches an update, 2 epochs
    fit(tmp_path / "stream", [callback(**far)], train=DataLoader(Endless(), batch_size=2))
    assert steps(tmp_path / "stream") == [0, UPDATES]
    fit(tmp_path / "two", [callback(**far)], module=TwoOptimisers(), accumulate_grad_batches=1, max_steps=8)
    assert steps(tmp_path / "two") == [0, 4]  # eight optimiser steps are four updates


def test_run_stopped_by_a_validation_is_measured_at_its_last_update(tmp_path):
    L.seed_everything(1, verbose=False)
    stop = EarlyStopping("val/loss", stopping_threshold=1e9, mode="min")
    made = trainer(tmp_path, [stop, callback(schedule=Schedule(every=1000, per_decade=0))], max_steps=-1, max_epochs=9)
    made.fit(Module(), loader(), loader(shuffle=False))
    assert steps(tmp_path) == [0, 6]


def test_uneven_accumulation_counts_updates_not_batches(tmp_path):
    """24 batches in groups of five: Lightning steps on the last, shorter group too."""
    fit(
        tmp_path,
        [callback(schedule=Schedule(every=1, per_decade=0))],
        accumulate_grad_batches=5,
        max_steps=-1,
        max_epochs=1,
    )
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_measured_weights_are_those_of_the_step(tmp_path):
    """The record at update 4 equals a measurement of the checkpoint saved at update 4."""
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="at4")
    fit(tmp_path, [callback(), keep], max_steps=4)
    module = Module()
    module.load_state_dict(torch.load(tmp_path / "at4.ckpt", weights_only=True)["state_dict"])
    [expected] = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW).measure(module, 4)
    assert read_records(tmp_path / "geometry.jsonl")[-1]["rankme"] == expected.metrics["rankme"]


def test_resumed_run_goes_on_in_the_same_file(tmp_path):
    keep = lambda: ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(tmp_path, [callback(), keep()])
    fit(tmp_path, [callback(), keep()], ckpt_path=tmp_path / "step=3.ckpt")
    assert steps(tmp_path) == [0, 2, 4, 6]
    assert not (tmp_path / "geometry-2.jsonl").exists()


@pytest.mark.parametrize("saved_at", [1, 4])
def test_measurement_taken_just_before_a_checkpoint_survives_the_resumption(saved_at, tmp_path):
    each = dict(schedule=Schedule(every=1, per_decade=0))
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=saved_at, save_top_k=-1, filename="{step}")
    fit(tmp_path, [callback(**each), keep])
    fit(tmp_path, [callback(**each)], ckpt_path=tmp_path / f"step={saved_at}.ckpt")
    assert steps(tmp_path) == list(range(UPDATES + 1))
    assert not (tmp_path / "geometry-2.jsonl").exists()


def test_run_that_failed_is_resumed_in_the_same_file(tmp_path):
    """In the same process, as in a notebook: the failed run must not keep the file locked."""

    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 4:
                raise RuntimeError("interrupted")
            return super().training_step(batch, batch_idx)

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    failed = callback()
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(tmp_path, [failed, keep], module=Fails())
    fit(tmp_path, [callback()], ckpt_path=tmp_path / "step=3.ckpt")
    assert steps(tmp_path) == [0, 2, 4, 6]
    assert failed.monitor.record_path == tmp_path / "geometry.jsonl"


def test_resuming_with_another_probe_is_refused(tmp_path):
    fit(tmp_path, [callback(), ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="at")], max_steps=3)
    other = GeometryCallback(tiny.probe(seed=9), alpha_window=tiny.WINDOW)
    with pytest.raises(ValueError, match="give it the same"):
        fit(tmp_path, [other], ckpt_path=tmp_path / "at.ckpt")


def test_one_callback_serves_two_fits(tmp_path):
    added = callback()
    for name in ("a", "b"):
        fit(tmp_path / name, [added])
        assert steps(tmp_path / name) == [0, 2, 4, 6]


def test_bf16_trainer_is_measured_under_its_precision(tmp_path):
    fit(tmp_path / "mixed", [callback()], precision="bf16-mixed", max_steps=1)
    fit(tmp_path / "full", [callback()], max_steps=1)
    mixed, full = (read_records(tmp_path / name / "geometry.jsonl")[0] for name in ("mixed", "full"))
    assert (mixed["precision"], full["precision"]) == ("bf16", "fp32")
    assert mixed["rankme"] != full["rankme"]
    assert mixed["rankme"] == pytest.approx(full["rankme"], rel=2e-2)


def test_stop_that_must_wait_for_min_epochs_does_not_measure_every_update(tmp_path):
    L.seed_everything(1, verbose=False)
    stop = EarlyStopping("val/loss", stopping_threshold=1e9, mode="min")
    far = callback(schedule=Schedule(every=1000, per_decade=0))
    made = trainer(tmp_path, [stop, far], max_steps=-1, min_epochs=3, max_epochs=9)
    made.fit(Module(), loader(), loader(shuffle=False))
    assert steps(tmp_path) == [0, 18]


def test_two_callbacks_in_one_trainer_are_told_apart_in_its_checkpoint(tmp_path):
    keep = lambda: ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    both = lambda: [callback(layers=1), callback(layers=2), keep()]
    fit(tmp_path, both())
    fit(tmp_path, both(), ckpt_path=tmp_path / "step=3.ckpt")
    for name, layer in (("geometry.jsonl", "layer1"), ("geometry-2.jsonl", "layer2")):
        records = read_records(tmp_path / name)
        assert [(record["step"], record["layer"]) for record in records] == [(step, layer) for step in (0, 2, 4, 6)]


def test_metric_without_a_value_is_nan_for_other_callbacks(tmp_path):
    class Breaks(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if trainer.global_step == 5:
                pl_module.network.gpt_neox.final_layer_norm.weight.data.fill_(float("nan"))

    made, _ = fit(tmp_path, [Breaks(), callback()])
    assert read_records(tmp_path / "geometry.jsonl")[-1]["rankme"] is None
    assert made.callback_metrics["geometry/rankme"].isnan()


def test_fast_dev_run_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, [callback()], fast_dev_run=True)
    assert list(tmp_path.rglob("geometry*")) == []


def test_rank_me_is_in_the_progress_bar(tmp_path):
    made, _ = fit(tmp_path, [callback()])
    assert made.progress_bar_metrics["geometry/rankme"] == read_records(tmp_path / "geometry.jsonl")[-1]["rankme"]


def test_two_language_models_in_a_module_are_told_apart(tmp_path):
    class Distillation(Module):
        def __init__(self):
            super().__init__()
            self.teacher = tiny.model(seed=4)

    with pytest.raises(ValueError, match=r"2 language models.*module='network'.*module='teacher'"):
        fit(tmp_path, [callback()], module=Distillation())
    fit(tmp_path, [callback(module="network")], module=Distillation(), max_steps=1)
    assert steps(tmp_path)[:2] == [0, 1]


def test_probe_of_another_vocabulary_is_refused_before_the_first_update(tmp_path):
    probe = ProbeSet.from_token_ids(torch.full((20, 5), tiny.VOCABULARY))
    module = Module()
    with pytest.raises(ValueError, match=f"token id {tiny.VOCABULARY}"):
        fit(tmp_path, [GeometryCallback(probe, alpha_window=tiny.WINDOW)], module=module)
    assert module.losses == []
