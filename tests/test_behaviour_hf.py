"""BehaviourCallback under Trainer and TRL: no trace on training, its rows beside the loss, and a file of its own."""

from __future__ import annotations

import ast
import copy
import json
import math
import random

import numpy as np
import pytest
import tiny
import torch
import wandb
import wandb_file
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_hf import DROPOUT, MAKERS, TIMED, UPDATES, trainer
from transformers import TrainerCallback

from geomcallbacks import Schedule, read_records
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss, Completions, PreferenceScore, RolloutScore
from geomcallbacks.behaviour.hf import BehaviourCallback
from geomcallbacks.hf import GeometryCallback

EVERY_SECOND = Schedule(every=2, per_decade=0)


def completions(seed=3):
    return Completions.from_texts(
        tiny.texts(6, words=4), tiny.texts(6, words=5, seed=seed), tiny.tokenizer(), max_length=20
    )


def rollouts(**changes):
    settings = dict(samples=2, max_new_tokens=4, batch_size=5) | changes
    return RolloutScore(
        tiny.texts(3, words=3), lambda text, p: float(len(text)), tiny.tokenizer(), answer=str.strip, **settings
    )


def measures():
    return {
        "held_out": CompletionLoss(completions()),
        "pairs": PreferenceScore(completions(), completions(seed=4)),
        "task": rollouts(),
    }


def callback(given=None, **changes):
    return BehaviourCallback(given or measures(), **({"schedule": EVERY_SECOND, "on_error": "raise"} | changes))


def outcome(made):
    """Weights, optimiser state and logged rows after training, without what a clock says."""
    made.train()
    rows = [
        {key: value for key, value in row.items() if not any(word in key for word in TIMED)}
        for row in made.state.log_history
        if not any(key.startswith("behaviour/") for key in row)
    ]
    optimiser = made.optimizer.state_dict()["state"]
    return {name: value.clone() for name, value in made.model.state_dict().items()}, optimiser, rows


@pytest.mark.parametrize("kind", MAKERS)
def test_training_is_bit_identical_with_and_without(kind, tmp_path):
    """With dropout, gradient checkpointing and accumulation; the measures sample, and one draws of every kind."""

    def careless(model):
        """What a user's own measure may do."""
        model.train()
        return {"noise": float(torch.rand(1)) + random.random() + float(np.random.rand())}

    plain = outcome(MAKERS[kind](tmp_path / "plain", []))
    watched = outcome(MAKERS[kind](tmp_path / "watched", [callback(measures() | {"careless": careless})]))
    for name, value in plain[0].items():
        assert torch.equal(value, watched[0][name]), name
    for index, state in plain[1].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(watched[1][index][key])), (index, key)
    assert len(plain[2]) >= 3
    assert json.dumps(plain[2]) == json.dumps(watched[2])
    records = read_records(tmp_path / "watched" / "behaviour.jsonl")
    assert [record["step"] for record in records] == [0, 2, 4, 6]
    assert "careless/noise" in records[0]


def test_rows_agree_in_wandb_file_record_file_and_log_history(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()  # it reads WANDB_DIR once in a process, and other tests have their own
    both = [callback(), GeometryCallback(tiny.probe(), **tiny.watching())]
    made = trainer(tmp_path, both, report_to="wandb", logging_steps=1)
    made.train()
    wandb.finish()
    wandb.teardown()
    rows = wandb_file.history(tmp_path)
    ours = [row for row in rows if "behaviour/held_out/loss" in row]
    logged = [row for row in made.state.log_history if "behaviour/held_out/loss" in row]
    records = read_records(tmp_path / "behaviour.jsonl")
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["train/global_step"] for row in rows if "geometry/rankme" in row] == [0, 2, 4, 6]
    assert [row["train/global_step"] for row in ours] == [row["step"] for row in logged] == [0, 2, 4, 6]
    for row, history, record in zip(ours, logged, records, strict=True):
        assert record["seconds"] > 0
        keys = set(record) - {"step", "seconds"}
        assert {key for key in row if "behaviour" in key} == {f"behaviour/{key}" for key in keys}
        assert {key for key in history if "behaviour" in key} == {f"behaviour/{key}" for key in keys}
        assert all(row[f"behaviour/{key}"] == history[f"behaviour/{key}"] == record[key] for key in keys)
    assert {"held_out/loss", "pairs/margin", "task/pass@1", "task/length"} < set(records[0])


def test_tensorboard_has_behaviour_in_the_run_of_the_loss(tmp_path):
    trainer(tmp_path, [callback()], report_to="tensorboard").train()
    events = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent))
    events.Reload()
    assert [event.step for event in events.Scalars("behaviour/held_out/loss")] == [0, 2, 4, 6]
    assert "train/loss" in events.Tags()["scalars"]


def test_each_measure_is_printed_on_a_line_of_its_own(tmp_path, capsys):
    trainer(tmp_path, [callback()], max_steps=1).train()
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if "behaviour/" in line]
    assert [{key.split("/")[1] for key in line if "/" in key} for line in lines] == [
        {"held_out"},
        {"pairs"},
        {"task"},
    ] * 2


def test_the_weights_are_those_of_the_step(tmp_path):
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = copy.deepcopy(model.state_dict())

    trainer(tmp_path, [callback(), Keep()]).train()
    for record in read_records(tmp_path / "behaviour.jsonl")[1:]:
        fresh = tiny.model(**DROPOUT)
        fresh.load_state_dict(seen[record["step"]])
        assert record["held_out/loss"] == CompletionLoss(completions())(fresh)["loss"]


def test_measures_see_an_unwrapped_model_in_evaluation_without_gradients(tmp_path):
    seen = []

    def look(model):
        modes = any(m.training for m in model.modules())
        seen.append((type(model).__name__, modes, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return {"x": torch.tensor(1)}

    trainer(tmp_path, [callback({"look": look})], bf16=True).train()
    assert seen == [("GPTNeoXForCausalLM", False, False, True)] * 4


def test_a_wrapped_model_is_unwrapped_for_the_measures():
    seen = []
    watch = BehaviourMonitor({"look": lambda model: {"x": seen.append(type(model)) or 1}})
    assert watch.step(torch.nn.DataParallel(torch.nn.Linear(2, 2)), 0) == {"look/x": 1.0}
    assert seen == [torch.nn.Linear]


def test_bf16_and_lora_are_measured(tmp_path):
    made = trainer(tmp_path, [callback()], bf16=True, max_steps=2)
    made.model = made.model_wrapped = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["query_key_value"]))
    made.train()
    losses = [record["held_out/loss"] for record in read_records(tmp_path / "behaviour.jsonl")]
    assert len(set(losses)) == 2
    assert all(math.isfinite(loss) for loss in losses)


def test_a_measure_that_raises_warns_once_and_the_others_go_on(tmp_path):
    def broken(model):
        raise KeyError(f"nothing at {id(model)}{torch.rand(1)}")

    made = trainer(tmp_path, [callback({"broken": broken, "fine": lambda model: {"x": 1}}, on_error="warn")])
    with pytest.warns(
        UserWarning, match=r"'broken' was not measured at step 0 \(KeyError: .*training goes on"
    ) as caught:
        made.train()
    assert sum("'broken'" in str(warning.message) for warning in caught) == 1
    assert made.state.global_step == UPDATES
    records = read_records(tmp_path / "behaviour.jsonl")
    assert [set(record) for record in records] == [{"step", "seconds", "fine/x"}] * 4


def test_a_measure_that_raises_ends_the_run_where_asked(tmp_path):
    def broken(model):
        raise KeyError("nothing")

    with pytest.raises(KeyError, match="nothing"):
        trainer(tmp_path, [callback({"broken": broken})]).train()


def test_what_is_no_mapping_is_a_failure_of_the_measure(tmp_path):
    with pytest.warns(UserWarning, match="'odd' was not measured"):
        trainer(tmp_path, [callback({"odd": lambda model: 3.0}, on_error="warn")], max_steps=1).train()


def test_values_that_are_not_finite_are_null_and_logged_nowhere(tmp_path):
    values = {"a": 1.0, "b": math.nan, "c": -math.inf, "d": None}
    made = trainer(tmp_path, [callback({"odd": lambda model: values})], max_steps=1)
    made.train()
    line = (tmp_path / "behaviour.jsonl").read_text().splitlines()[1]
    assert json.loads(line, parse_constant=pytest.fail)["odd/b"] is None
    record = read_records(tmp_path / "behaviour.jsonl")[0]
    assert {key: record[f"odd/{key}"] for key in values} == {"a": 1.0, "b": None, "c": None, "d": None}
    logged = {key for row in made.state.log_history for key in row if key.startswith("behaviour/")}
    assert logged == {"behaviour/odd/a"}


def test_header_names_what_was_measured(tmp_path):
    trainer(tmp_path, [callback()], max_steps=1).train()
    header = json.loads((tmp_path / "behaviour.jsonl").read_text().splitlines()[0])
    assert header["kind"] == "header"
    assert header["resumed_from"] is None
    assert header["measures"]["held_out"] == {"kind": "CompletionLoss", "fingerprint": completions().fingerprint}
    assert header["settings"]["total_steps"] == 1


def test_resumed_run_goes_on_in_its_own_file(tmp_path):
    saving = dict(save_strategy="steps", save_steps=3)

    def both():
        return [callback({"loss": CompletionLoss(completions())}), GeometryCallback(tiny.probe(), **tiny.watching())]

    trainer(tmp_path, both(), **saving).train()
    trainer(tmp_path, both(), max_steps=2).train()  # another run in the same folder
    trainer(tmp_path, both(), **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for kind in ("behaviour", "geometry"):
        assert [record["step"] for record in read_records(tmp_path / f"{kind}.jsonl")] == [0, 2, 4, 6]
        assert [record["step"] for record in read_records(tmp_path / f"{kind}-2.jsonl")] == [0, 2]
    headers = [json.loads(line) for line in (tmp_path / "behaviour.jsonl").read_text().splitlines() if "header" in line]
    assert [header["resumed_from"] for header in headers] == [None, 3]
    assert len({header["run_id"] for header in headers}) == 1


def test_gradient_accumulation_does_not_measure_twice(tmp_path):
    calls = []
    given = {"count": lambda model: {"n": calls.append(1) or len(calls)}}
    trainer(tmp_path, [callback(given, schedule=Schedule(every=1, per_decade=0))]).train()
    assert len(calls) == UPDATES + 1


def test_a_budget_skips_what_is_optional_and_says_so(tmp_path):
    import time

    given = {"slow": lambda model: {"x": time.sleep(0.2) or 1.0}}
    trainer(tmp_path, [callback(given, schedule=Schedule(every=1, per_decade=0, budget=1e-6))]).train()
    assert [record["step"] for record in read_records(tmp_path / "behaviour.jsonl")] == [0, UPDATES]
    lines = [json.loads(line) for line in (tmp_path / "behaviour.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "skip"] == [1, 2, 3, 4, 5]


def test_one_callback_serves_two_runs_and_can_be_copied(tmp_path):
    added = callback({"x": lambda model: {"y": 1}})
    for name in ("a", "b"):
        trainer(tmp_path / name, [added]).train()
        assert [record["step"] for record in read_records(tmp_path / name / "behaviour.jsonl")] == [0, 2, 4, 6]
    assert copy.deepcopy(added).monitor.key == added.monitor.key


def test_path_can_be_given(tmp_path):
    trainer(tmp_path / "out", [callback({"x": lambda model: {"y": 1}}, path=tmp_path / "b.jsonl")]).train()
    assert len(read_records(tmp_path / "b.jsonl", as_frame=True)) == 4
    assert not (tmp_path / "out" / "behaviour.jsonl").exists()


def test_what_does_not_fit_the_model_is_refused_before_the_first_update(tmp_path):
    rows = Completions([[1]], [[tiny.VOCABULARY]])
    made = trainer(tmp_path, [callback({"loss": CompletionLoss(rows)}, on_error="warn")])
    with pytest.raises(ValueError, match=f"token id {tiny.VOCABULARY}"):
        made.train()
    assert made.state.global_step == 0


@pytest.mark.parametrize(
    ("given", "changes", "error", "message"),
    [
        ({}, {}, ValueError, "measures nothing"),
        ([len], {}, TypeError, "measures is a list"),
        ({"a/b": len}, {}, ValueError, "'a/b'"),
        ({"": len}, {}, ValueError, "''"),
        ({"a": 3}, {}, TypeError, "measure 'a' is a int"),
        ({"a": len}, {"on_error": "ignore"}, ValueError, "on_error='ignore'"),
        ({"a": len}, {"schedule": 10}, ValueError, "schedule=10"),
    ],
)
def test_bad_settings_are_refused_at_construction(given, changes, error, message):
    with pytest.raises(error, match=message):
        BehaviourCallback(given, **changes)
