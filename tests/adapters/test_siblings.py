"""Beside other callbacks of a Trainer, in whatever order, and in loops that have no Trainer: every tracker has each row
once, and what decides by geometry reads that of the present weights.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import wandb
import wandb_file
from drives import EACH, MEASURED, loss_of, make_trainer, steps, watcher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback, integration_utils

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.record import read_lines

EVALUATED = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, greater_is_better=True)


def geometry(**settings: Any) -> Any:
    return watcher("trainer", "geometry", Path(), **settings)


def of_now(model: torch.nn.Module) -> float:
    """RankMe of a model's present weights, by a monitor of its own."""
    watch = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, precision="fp32")
    return watch.measure(model, 0)[0].metrics["rankme"]


class Values(TrainerCallback):
    """RankMe of the weights at each evaluation, whoever has measured."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found[state.global_step] = of_now(model)


# --- what decides by geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["geometry/rankme", "eval_geometry/rankme"])
@pytest.mark.parametrize("first", ["ours", "early stopping"])
def test_the_best_model_and_early_stopping_read_the_present_weights(name: str, first: str, tmp_path: Path) -> None:
    """Measured at each evaluation, though the schedule has every second update."""
    values, pair = Values(), [geometry(), EarlyStoppingCallback(1)]
    callbacks = [values, *(pair if first == "ours" else pair[::-1])]
    settings = EVALUATED | {"load_best_model_at_end": True, "metric_for_best_model": name, "max_steps": 12}
    made = make_trainer(tmp_path, callbacks, **settings)
    made.train()
    stopped = made.state.global_step
    curve = [values.found[step] for step in sorted(values.found)]
    best = max(curve)
    assert made.state.best_metric == pytest.approx(best, rel=1e-12)
    assert made.state.best_global_step == 1 + curve.index(best)
    worse = next(step for step in range(2, 13) if curve[step - 1] <= max(curve[: step - 1]))
    assert stopped == worse < 12
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == list(range(stopped + 1))


def test_a_metric_that_is_none_is_refused_before_the_first_update(tmp_path: Path) -> None:
    made = make_trainer(tmp_path, [geometry()], **EVALUATED, metric_for_best_model="geometry/rank_me")
    with pytest.raises(
        ValueError, match=r"metric_for_best_model='geometry/rank_me' is none .* such as geometry/rankme"
    ):
        made.train()
    assert made.state.global_step == 0


def test_a_failed_measurement_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomcallbacks.monitor.measure_probe", lambda *args, **kwargs: 1 / 0)
    made = make_trainer(tmp_path, [geometry(on_error="warn")], **EVALUATED, metric_for_best_model="geometry/rankme")
    with pytest.warns(UserWarning, match="not measured"):
        made.train()
    assert (made.state.global_step, made.state.best_metric) == (4, float("-inf"))


# --- trackers through others' callbacks -----------------------------------------------------------------------------


def drawn(folder: Path, key: str) -> dict[str, list[int]]:
    found = {}
    for place in {events.parent for events in folder.rglob("events*")}:
        events = EventAccumulator(str(place)).Reload()
        found[place.name] = [event.step for event in events.Scalars(key)] if key in events.Tags()["scalars"] else []
    return found


def test_a_tracker_that_opens_behind_us_has_update_0_too(tmp_path: Path) -> None:
    make_trainer(tmp_path, [geometry(), TensorBoardCallback()]).train()
    assert list(drawn(tmp_path, "geometry/rankme").values()) == [MEASURED]


def test_a_tracker_with_several_callbacks_has_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Predictions(WandbCallback):
        """Logs on its own, in other hooks."""

        def on_log(self, *args: Any, **kwargs: Any) -> None: ...

    counted = []

    class Notebook(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            counted.append((state.global_step, "geometry/rankme" in logs))

    class Tables(Notebook):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("a row of ours is none of its own")

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
    wandb.teardown()
    tables = Tables()
    made = make_trainer(tmp_path, [geometry(), Predictions(), Notebook()], report_to=["wandb"])
    with contextlib.suppress(AssertionError):
        made.add_callback(tables)
    made.callback_handler.callbacks.remove(tables)
    made.train()
    wandb.finish()
    rows = wandb_file.history(tmp_path)
    assert [row["train/global_step"] for row in rows if "geometry/rankme" in row] == MEASURED
    assert [step for step, ours in counted if ours] == MEASURED


def test_a_tracker_that_counts_its_own_steps_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DVCLive's callback: every call of its `on_log` is a step, and the user's loss is drawn over those."""

    class Live:
        def __init__(self) -> None:
            self.step, self.rows = 0, []

        def log_metric(self, name: str, value: float) -> None:
            self.rows.append((self.step, name))

    class DVCLiveCallback(TrainerCallback):
        def __init__(self) -> None:
            self.live = Live()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name in logs:
                self.live.log_metric(name, 0.0)
            self.live.step += 1

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "dvclive", DVCLiveCallback)
    plain, watched = DVCLiveCallback(), DVCLiveCallback()
    make_trainer(tmp_path / "plain", [plain]).train()
    make_trainer(tmp_path, [watched, geometry()]).train()
    assert [row for row in watched.live.rows if not row[1].startswith("geometry/")] == plain.live.rows
    assert len([row for row in watched.live.rows if row[1] == "geometry/rankme"]) == 3


@pytest.mark.parametrize("initialised", [True, False])
def test_hooks_called_without_a_trainer_reach_wandb(
    initialised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports of Trainer, and loops of one's own that know the hooks."""
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(AcceleratorState, "_shared_state", dict(AcceleratorState._shared_state) if initialised else {})
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()
    run = wandb.init(project="x", dir=str(tmp_path))
    args = TrainingArguments(str(tmp_path), report_to=["wandb", "tensorboard"], use_cpu=True)
    watch, model, state, control = geometry(), tiny.model(), TrainerState(max_steps=4), TrainerControl()
    watch.on_train_begin(args, state, control, model=model)
    with pytest.warns(UserWarning, match="tensorboard get no rows"):
        watch.on_epoch_begin(args, state, control, model=model)
    for update in range(1, 5):
        loss_of(model, tiny.rows(2)).backward()
        run.log({"train/loss": 1.0, "train/global_step": update})
        state.global_step, control.should_training_stop = update, update == 4
        watch.on_step_end(args, state, control, model=model)
    watch.on_train_end(args, state, control, model=model)
    wandb.finish()
    rows = wandb_file.history(tmp_path)
    assert [row["train/global_step"] for row in rows if "geometry/rankme" in row] == MEASURED
    assert steps(tmp_path / "geometry.jsonl") == MEASURED
    with pytest.raises(ValueError, match="without model=: pass the model"):
        geometry().on_train_begin(args, state, control)


# --- several of ours ------------------------------------------------------------------------------------------------


def test_two_callbacks_have_keys_of_their_own_or_are_refused(tmp_path: Path) -> None:
    made = make_trainer(tmp_path, [geometry(), geometry(layers=1), geometry(layers=[0, "gpt_neox.layers.1"])])
    made.train()
    found = {key for row in made.state.log_history for key in row if key.endswith("/rankme")}
    assert found == {f"geometry/{layer}rankme" for layer in ("", "layer1/", "layer0/", "gpt_neox.layers.1/")}
    rows = [row for row in made.state.log_history if "geometry/rankme" in row]
    assert [row["step"] for row in rows] == MEASURED
    same = make_trainer(tmp_path, [geometry(), geometry(layers=[3])])  # the last layer, by its number
    with pytest.raises(ValueError, match=r"two callbacks log under 'geometry': name their probes"):
        same.train()
    label = make_trainer(tmp_path, [geometry(layers=1), geometry(probe={"layer1": tiny.probe()})])
    with pytest.raises(ValueError, match=r"two callbacks log under 'geometry/layer1'"):
        label.train()


def test_a_trial_of_a_search_is_named_in_its_header(tmp_path: Path) -> None:
    made = make_trainer(tmp_path, [geometry(schedule=EACH)], max_steps=1)
    begin = TrainerCallback.on_train_begin

    class Search(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            params = {"learning_rate": float("nan"), "layers": 2, "kind": torch.float16}  # what JSON does not hold
            state.is_hyper_param_search, state.trial_name, state.trial_params = True, "run-3", params
            begin(self, args, state, control, **kwargs)

    made.callback_handler.callbacks.insert(0, Search())
    made.train()
    header = read_lines(tmp_path / "geometry.jsonl")[0]
    params = {"learning_rate": "nan", "layers": 2, "kind": "torch.float16"}
    assert header["trial"] == {"name": "run-3", "params": params}


def test_a_push_to_the_hub_leaves_held_out_text_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Trainer itself would upload."""
    from huggingface_hub.utils import filter_repo_objects

    made, given = make_trainer(tmp_path, [geometry()]), {}
    made.train()
    upload = SimpleNamespace(upload_folder=lambda **settings: given.update(settings))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: upload, raising=False)
    monkeypatch.setattr("transformers.trainer.upload_folder", upload.upload_folder, raising=False)
    made.init_hf_repo = made.create_model_card = lambda *args, **kwargs: None
    made.hub_model_id, made.push_in_progress = "me/x", None
    made.push_to_hub()
    files = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()]
    assert any("probes" in file for file in files)
    pushed = list(filter_repo_objects(files, ignore_patterns=given["ignore_patterns"]))
    assert not [file for file in pushed if "probes" in file]
    assert "geometry.jsonl" in pushed
    assert json.loads((tmp_path / "geometry.jsonl").read_text().splitlines()[0])["probes"]


# --- callbacks that come, go and share ------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [1, -1])
def test_one_of_two_callbacks_chooses_the_best_model(turn: int, tmp_path: Path) -> None:
    other = geometry(probe={"other": tiny.probe(seed=9)}, path=tmp_path / "other.jsonl")
    values, pair = Values(), [geometry(probe={"own": tiny.probe()}), other][::turn]
    made = make_trainer(tmp_path, [values, *pair], **EVALUATED, metric_for_best_model="geometry/own/rankme")
    made.train()
    assert made.state.best_metric == pytest.approx(max(values.found.values()), rel=1e-12)
    wrong = make_trainer(tmp_path, pair, **EVALUATED, metric_for_best_model="geometry/web/rankme")
    with pytest.raises(
        ValueError, match=r"none of what is logged: .*geometry/(own/.*geometry/other|other/.*geometry/own)"
    ):
        wrong.train()


def test_several_data_sets_of_one_evaluation_count_once(tmp_path: Path) -> None:
    """As they do where a loss decides: patience is not used up by each of them."""
    counted = {}

    class Counts(EarlyStoppingCallback):
        def on_evaluate(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            before = self.early_stopping_patience_counter
            super().on_evaluate(args, state, *rest, **kwargs)
            counted.setdefault(state.global_step, []).append(self.early_stopping_patience_counter - before)

    settings = EVALUATED | {"load_best_model_at_end": True, "metric_for_best_model": "geometry/rankme", "max_steps": 8}
    made = make_trainer(tmp_path, [geometry(), Counts(3)], **settings)
    made.eval_dataset = {"one": made.eval_dataset, "two": made.train_dataset}
    made.train()
    assert max(map(sum, counted.values())) == 1
    assert {len(each) for each in counted.values()} == {2}


def test_a_callback_that_is_added_to_a_run_has_a_file(tmp_path: Path) -> None:
    class Adds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                made.add_callback(geometry(schedule=EACH))

    made = make_trainer(tmp_path, [Adds()])
    made.train()
    assert steps(tmp_path / "geometry.jsonl") == [2, 3, 4]


def test_a_callback_that_two_trainers_call_in_turn_keeps_their_files_apart(tmp_path: Path) -> None:
    shared = geometry(schedule=EACH)

    class Between(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                make_trainer(tmp_path / "inner", [shared], max_steps=3).train()

    make_trainer(tmp_path / "outer", [shared, Between()]).train()
    assert steps(tmp_path / "outer" / "geometry.jsonl") == [0, 1, 2, 3, 4]
    assert steps(tmp_path / "inner" / "geometry.jsonl") == [0, 1, 2, 3]
