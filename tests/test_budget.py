"""`Schedule(budget=…)` under load: a real clock, a probe that is or becomes fifty times dearer, every framework.

Nothing here depends on how fast the machine is: what measuring took is held against what training took, both timed by
the test itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

import geomcallbacks.hf
import geomcallbacks.lightning
from geomcallbacks import GeometryMonitor, Schedule, read_records
from geomcallbacks.record import read_lines

BUDGET, UPDATES = 0.5, 240
TIGHT = 0.2  # where the probe is dear for half of a run only
UPDATE, CHEAP = 0.01, 0.004  # seconds
SCHEDULE = Schedule(every=8, budget=BUDGET)


class Slow:
    """A forward pass of the model takes so long while it trains, and so long while it is measured."""

    def __init__(self, model: nn.Module) -> None:
        self.measuring = CHEAP
        model.model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: object) -> None:
        time.sleep(UPDATE if module.training else self.measuring)


def watching(path: Path | None) -> dict[str, Any]:
    return {"alpha_window": tiny.WINDOW, "batch_size": 64, "schedule": SCHEDULE, "on_error": "raise", "path": path}


def timed(watch: GeometryMonitor) -> dict[int, float]:
    """Seconds of each measurement by its update, as they come in."""
    seconds: dict[int, float] = {}
    measure = watch.measure

    def clocked(model: nn.Module, step: int, **given: Any) -> Any:
        begin = time.perf_counter()
        records = measure(model, step, **given)
        seconds[step] = time.perf_counter() - begin
        return records

    watch.measure = clocked
    return seconds


def plain_loop(watch: GeometryMonitor, model: nn.Module, dearer: Callable[[int], None]) -> None:
    ids_bt = tiny.rows(2)[0]
    watch.start(model, total_steps=UPDATES)
    watch.step(model, 0)
    for step in range(1, UPDATES + 1):
        model(ids_bt)
        dearer(step)
        watch.step(model, step)
    watch.close()


@pytest.mark.parametrize("begins", [0, UPDATES // 2])
def test_optional_measurements_stay_within_the_budget(tmp_path: Path, begins: int) -> None:
    model = tiny.model("olmo2")
    slow = Slow(model)
    watch = GeometryMonitor(tiny.probe(), **watching(tmp_path / "g.jsonl"))
    seconds = timed(watch)

    def dearer(step: int) -> None:
        slow.measuring = 50 * CHEAP if step >= begins else CHEAP

    dearer(0)
    begin = time.perf_counter()
    with pytest.warns(UserWarning, match=r"budget=0\.5 does not allow the measurement at step \d+") as caught:
        plain_loop(watch, model, dearer)
    trained = time.perf_counter() - begin - sum(seconds.values())
    assert sum("does not allow" in str(one.message) for one in caught) == 1
    optional = sum(cost for step, cost in seconds.items() if step not in (0, UPDATES))
    assert 0.4 * BUDGET * trained < optional <= 1.2 * BUDGET * trained

    due = SCHEDULE.steps(UPDATES)
    skips = [line for line in read_lines(tmp_path / "g.jsonl") if line["kind"] == "skip"]
    assert [record["step"] for record in read_records(tmp_path / "g.jsonl")] == list(seconds)
    assert sorted([*seconds, *(line["step"] for line in skips)]) == due
    assert {line["reason"] for line in skips} == {"budget"}
    assert all(line["spent"] + line["cost"] > line["allowed"] for line in skips)
    # The beginning is measured all the same; an update shows no pace before the second.
    early = [step for step in seconds if 2 <= step <= 24]
    if begins:
        assert early == [step for step in due if 2 <= step <= 24]
    else:
        assert early[:2] == [2, 3]
        assert len(early) < len([step for step in due if 2 <= step <= 24])
        assert max(set(seconds) - {UPDATES}) > UPDATES // 4  # and the later part is thinned out, not left out


class Module(L.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.network(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def under_trainer(model: nn.Module, folder: Path, updates: int) -> tuple[GeometryMonitor, Callable[[], Any]]:
    ids, mask = tiny.rows(64, seed=5)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": ids.tolist()})
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=updates,
        per_device_train_batch_size=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    added = geomcallbacks.hf.GeometryCallback(tiny.probe(), **watching(folder / "g.jsonl"))
    return added.monitor, Trainer(model, args, train_dataset=data, callbacks=[added]).train


def under_lightning(model: nn.Module, folder: Path, updates: int) -> tuple[GeometryMonitor, Callable[[], Any]]:
    added = geomcallbacks.lightning.GeometryCallback(tiny.probe(), **watching(folder / "g.jsonl"))
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=False)
    trainer = L.Trainer(accelerator="cpu", max_steps=updates, default_root_dir=folder, callbacks=[added], **quiet)
    data = DataLoader(TensorDataset(*tiny.rows(64, seed=5)), batch_size=2)
    return added.monitor, lambda: trainer.fit(Module(model.train()), data)


@pytest.mark.parametrize("framework", [under_trainer, under_lightning])
def test_adapters_keep_the_budget(tmp_path: Path, framework: Callable[..., Any]) -> None:
    """Fifty times dearer from the middle of the run on."""
    updates, model = 120, tiny.model("olmo2")
    slow = Slow(model)
    watch, run = framework(model, tmp_path, updates)
    watch.schedule = Schedule(every=8, budget=TIGHT)
    seconds, step = timed(watch), watch.step

    def stepping(module: nn.Module, at: int, **given: Any) -> Any:
        slow.measuring = 50 * CHEAP / 2 if at >= updates // 2 else CHEAP / 2
        return step(module, at, **given)

    watch.step = stepping
    begin = time.perf_counter()
    with pytest.warns(UserWarning, match="does not allow the measurement at step"):
        run()
    trained = time.perf_counter() - begin - sum(seconds.values())
    optional = sum(cost for at, cost in seconds.items() if at not in (0, updates))
    assert optional <= 1.2 * TIGHT * trained
    assert {0, 2, 3, 4, 6, updates} <= set(seconds)
    skips = [line["step"] for line in read_lines(tmp_path / "g.jsonl") if line["kind"] == "skip"]
    assert sorted([*seconds, *skips]) == SCHEDULE.steps(updates)


def test_the_last_measurement_of_a_run_that_ends_early_is_not_charged_to_the_budget(tmp_path: Path) -> None:
    model, watch = tiny.model(), GeometryMonitor(tiny.probe(), **watching(None), total_steps=100)
    watch.step(model, 0)
    assert watch.step(model, 5, last=True) != []
    watch.measure(model, 7)  # nor is one that the user asks for
    assert watch.state_dict()["spent"]["optional_seconds"] == 0.0
    assert watch.state_dict()["spent"]["fixed_seconds"] > 0.0


def test_a_resumed_run_goes_on_with_its_budget() -> None:
    model, first = tiny.model("olmo2"), GeometryMonitor(tiny.probe(), **watching(None), total_steps=UPDATES)
    Slow(model)
    for step in range(9):
        model(tiny.rows(2)[0])
        first.step(model, step)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["spent"]["optional_seconds"] > 0.0
    second = GeometryMonitor(tiny.probe(), **watching(None), total_steps=UPDATES)
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.start(model, step=8)
    assert second.state_dict()["spent"] == state["spent"]
    second.start(model)  # another run
    assert second.state_dict()["spent"]["optional_seconds"] == 0.0


def test_trainers_checkpoints_hold_what_is_spent(tmp_path: Path) -> None:
    model = tiny.model("olmo2")
    Slow(model)
    spent = []
    for resume in (False, True):
        watch, run = under_trainer(model, tmp_path, 8)
        trainer = run.__self__
        trainer.args.save_strategy, trainer.args.save_steps = "steps", 6
        run(resume_from_checkpoint=str(tmp_path / "checkpoint-6") if resume else None)
        kept = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"]
        spent.append((kept[f"geomcallbacks {watch.key}"]["attributes"]["spent"], watch.state_dict()["spent"]))
    (saved, _), (_, after) = spent
    assert saved["updates"] == 6
    assert saved["optional_seconds"] > 0.0
    assert after["updates"] == 8
    assert after["optional_seconds"] > saved["optional_seconds"] - 1e-9
    assert after["fixed_seconds"] > saved["fixed_seconds"]
