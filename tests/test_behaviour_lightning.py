"""BehaviourCallback under Lightning: it leaves no trace on training, and its rows lie beside the loss."""

from __future__ import annotations

import csv
import math

import pytest
import tiny
import torch
import wandb
import wandb_file
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from test_lightning import Module, fit, loss_rows

from geomcallbacks import Schedule, read_records
from geomcallbacks.behaviour import CompletionLoss, Completions
from geomcallbacks.behaviour.lightning import BehaviourCallback

ROWS = Completions([[5, 6, 7], [8, 9]], [[10, 11], [12]])
EVERY_SECOND = Schedule(every=2, per_decade=0)


def first_weight(model):
    return {"weight": next(model.parameters()).sum().item(), "none": math.nan}


def callback(path=None, **measures):
    return BehaviourCallback(
        measures or {"held_out": CompletionLoss(ROWS)}, schedule=EVERY_SECOND, on_error="raise", path=path
    )


def test_training_is_bit_identical_with_and_without(tmp_path):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    _, module_a = fit(plain, logger=CSVLogger(plain))
    _, module_b = fit(watched, [callback(watched / "behaviour.jsonl")], logger=CSVLogger(watched))
    assert all(map(torch.equal, module_a.state_dict().values(), module_b.state_dict().values()))
    assert module_a.losses == module_b.losses
    assert loss_rows(plain) == loss_rows(watched)
    assert [row["step"] for row in read_records(watched / "behaviour.jsonl")] == [0, 2, 4, 6]


def test_rows_agree_in_wandb_file_record_file_and_csv(tmp_path):
    loggers = [WandbLogger(save_dir=tmp_path, offline=True), CSVLogger(tmp_path / "csv")]
    fit(tmp_path, [callback(tmp_path / "behaviour.jsonl")], logger=loggers)
    wandb.finish()
    records = [(row["step"], row["held_out/loss"]) for row in read_records(tmp_path / "behaviour.jsonl")]
    logged = [row for row in wandb_file.history(tmp_path) if "behaviour/held_out/loss" in row]
    assert [(row["trainer/global_step"], row["behaviour/held_out/loss"]) for row in logged] == records
    [file] = (tmp_path / "csv").glob("**/metrics.csv")
    written = [row for row in csv.DictReader(file.open()) if row["behaviour/held_out/loss"]]
    assert [(int(row["step"]), float(row["behaviour/held_out/loss"])) for row in written] == records
    assert [step for step, _ in records] == [0, 2, 4, 6]


def test_the_weights_are_those_of_the_step_and_no_value_is_nan_for_other_callbacks(tmp_path):
    seen = {}

    class Look(Module):
        def on_train_batch_start(self, batch, batch_idx):
            seen[self.trainer.global_step] = next(self.parameters()).sum().item()

    made, module = fit(tmp_path, [callback(tmp_path / "behaviour.jsonl", own=first_weight)], module=Look())
    rows = {row["step"]: row for row in read_records(tmp_path / "behaviour.jsonl")}
    assert {step: rows[step]["own/weight"] for step in (0, 2, 4)} == {step: seen[step] for step in (0, 2, 4)}
    assert rows[6]["own/weight"] == next(module.parameters()).sum().item()
    assert rows[6]["own/none"] is None
    assert math.isnan(made.callback_metrics["behaviour/own/none"])


def test_resumed_run_goes_on_in_its_own_file(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="at_four", every_n_train_steps=4, save_top_k=-1)
    fit(tmp_path, [callback(tmp_path / "behaviour.jsonl"), keep])
    whole = read_records(tmp_path / "behaviour.jsonl")
    again = callback(tmp_path / "behaviour.jsonl")
    fit(tmp_path, [again], ckpt_path=tmp_path / "at_four.ckpt")
    assert [row["step"] for row in read_records(tmp_path / "behaviour.jsonl")] == [row["step"] for row in whole]
    assert again.monitor.record_path is not None
    assert [file.name for file in tmp_path.glob("behaviour*.jsonl")] == ["behaviour.jsonl"]


def test_rows_that_do_not_fit_the_model_are_refused_before_the_first_update(tmp_path):
    module = Module()
    wrong = CompletionLoss(Completions([[1]], [[tiny.VOCABULARY]]))
    with pytest.raises(ValueError, match=f"token id {tiny.VOCABULARY}"):
        fit(tmp_path, [callback(wrong=wrong)], module=module)
    assert module.losses == []
