"""GeometryCallback under Trainer and TRL: it leaves no trace on training, and its rows lie beside the loss."""

from __future__ import annotations

import ast
import copy
import json
import os
from pathlib import Path

import pytest
import tiny
import torch
import wandb
import wandb_file
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from geomcallbacks import GeometryMonitor, Schedule, read_records
from geomcallbacks.hf import GeometryCallback
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.reading.no_trace import leave_no_trace

UPDATES = 6
COMMON = dict(
    max_steps=UPDATES,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    gradient_checkpointing=True,
    learning_rate=1e-2,
    logging_steps=2,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    seed=3,
    disable_tqdm=True,
)
DROPOUT = dict(attention_dropout=0.1, hidden_dropout=0.1)


def callback(**settings):
    return GeometryCallback(tiny.probe(), **tiny.watching(**settings))


def token_dataset(n=64):
    ids, mask = tiny.rows(n, seed=5)
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": ids.tolist()})


def trainer(folder, callbacks=(), **changes):
    args = TrainingArguments(output_dir=str(folder), **{**COMMON, **changes})
    return Trainer(
        tiny.model(**DROPOUT),
        args,
        train_dataset=token_dataset(),
        eval_dataset=token_dataset(8),
        callbacks=list(callbacks),
    )


def sft(folder, callbacks):
    args = SFTConfig(output_dir=str(folder), max_length=24, **{**COMMON, "bf16": False})
    data = Dataset.from_dict({"text": tiny.texts()})
    return SFTTrainer(
        tiny.model(**DROPOUT), args, train_dataset=data, processing_class=tiny.tokenizer(), callbacks=callbacks
    )


def dpo(folder, callbacks):
    args = DPOConfig(output_dir=str(folder), max_length=24, **{**COMMON, "bf16": False})
    prompts = [text + " " for text in tiny.texts(words=6)]
    good, bad = tiny.texts(words=6, seed=3), tiny.texts(words=6, seed=4)
    data = Dataset.from_dict({"prompt": prompts, "chosen": good, "rejected": bad})
    return DPOTrainer(
        tiny.model(**DROPOUT),
        ref_model=tiny.model(**DROPOUT),
        args=args,
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        callbacks=callbacks,
    )


def grpo(folder, callbacks):
    args = GRPOConfig(
        output_dir=str(folder),
        num_generations=4,
        max_completion_length=6,
        **{**COMMON, "bf16": False, "logging_steps": 1},
    )
    data = Dataset.from_dict({"prompt": tiny.texts(words=4)})
    return GRPOTrainer(
        tiny.model(**DROPOUT),
        reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
        args=args,
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        callbacks=callbacks,
    )


MAKERS = {"trainer": trainer, "sft": sft, "dpo": dpo, "grpo": grpo}
TIMED = ("runtime", "per_second", "flos", "time")


def outcome(made):
    """Weights, optimiser state and logged rows after training, without what a clock says."""
    made.train()
    rows = [
        {key: value for key, value in row.items() if not any(word in key for word in TIMED)}
        for row in made.state.log_history
        if not any(key.startswith("geometry/") for key in row)
    ]
    weights = {name: value.clone() for name, value in made.model.state_dict().items()}
    return weights, made.optimizer.state_dict()["state"], rows


@pytest.mark.parametrize("kind", MAKERS)
def test_training_is_bit_identical_with_and_without(kind, tmp_path):
    plain = outcome(MAKERS[kind](tmp_path / "plain", []))
    added = callback(layers=[0, 1, -1])
    watched = outcome(MAKERS[kind](tmp_path / "watched", [added]))
    for name, value in plain[0].items():
        assert torch.equal(value, watched[0][name]), name
    assert plain[1].keys() == watched[1].keys()
    for index, state in plain[1].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(watched[1][index][key])), (index, key)
    assert len(plain[2]) >= 3
    assert "loss" in plain[2][0]
    assert json.dumps(plain[2]) == json.dumps(watched[2])
    assert {record["step"] for record in read_records(tmp_path / "watched" / "geometry.jsonl")} == {0, 2, 4, 6}


def test_the_comparison_above_can_fail(tmp_path):
    """A callback that draws one global random number is caught by it: dropout sees another state."""

    class Draws(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            torch.rand(1)

    plain, disturbed = outcome(trainer(tmp_path / "a")), outcome(trainer(tmp_path / "b", [Draws()]))
    assert any(not torch.equal(value, disturbed[0][name]) for name, value in plain[0].items())


def test_steps_agree_in_wandb_file_record_file_and_log_history(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()  # it reads WANDB_DIR once in a process, and other tests have their own
    made = trainer(
        tmp_path, [callback(schedule=Schedule(every=3, per_decade=0, at=(1,)))], report_to="wandb", logging_steps=1
    )
    made.train()
    wandb.finish()
    rows = wandb_file.history(tmp_path)
    geometry = [row for row in rows if "geometry/rankme" in row]
    loss = [row for row in rows if "train/loss" in row]
    assert [row["train/global_step"] for row in loss] == [1, 2, 3, 4, 5, 6]
    assert [row["train/global_step"] for row in geometry] == [0, 1, 3, 6]
    records = read_records(tmp_path / "geometry.jsonl")
    history = [row for row in made.state.log_history if "geometry/rankme" in row]
    assert [record["step"] for record in records] == [row["step"] for row in history] == [0, 1, 3, 6]
    for row, record, logged in zip(geometry, records, history, strict=True):
        for name in METRIC_NAMES:
            assert row[f"geometry/{name}"] == record[name] == logged[f"geometry/{name}"], name
        assert row["geometry/log10_eigenvalues"]["_type"] == "histogram"
    # Every key of ours is one of these: never a mixture with the long form, never prefixed.
    ours = {key for row in rows for key in row if "geometry" in key}
    assert ours == {f"geometry/{name}" for name in METRIC_NAMES} | {"geometry/log10_eigenvalues"}


def test_keys_are_long_with_several_probes_or_layers(tmp_path):
    probes = {"web": tiny.probe(seed=1), "code": tiny.probe(seed=2)}
    made = trainer(
        tmp_path,
        [GeometryCallback(probes, layers=[1, -1], alpha_window=tiny.WINDOW, schedule=Schedule(every=6, per_decade=0))],
    )
    made.train()
    keys = {
        key for row in made.state.log_history for key in row if key.startswith("geometry/") and key.endswith("/rankme")
    }
    assert keys == {f"geometry/{probe}/{layer}/rankme" for probe in probes for layer in ("layer1", "layer3")}


def test_tensorboard_has_geometry_in_the_run_of_the_loss(tmp_path):
    pytest.importorskip("tensorboard")
    made = trainer(tmp_path, [callback()], report_to="tensorboard")
    made.train()
    [file] = tmp_path.glob("runs/*/events*")
    events = EventAccumulator(str(file.parent)).Reload()
    assert [event.step for event in events.Scalars("geometry/rankme")] == [0, 2, 4, 6]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]


def test_other_trackers_get_the_row_through_their_own_callback(tmp_path, monkeypatch):
    rows = []

    class Notebook(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            rows.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
    trainer(tmp_path, [Notebook(), callback()]).train()
    assert [step for step, logs in rows if "geometry/rankme" in logs] == [0, 2, 4, 6]


def test_a_row_is_printed(tmp_path, capsys):
    trainer(tmp_path, [callback()]).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "geometry/rankme" in line]
    assert len(lines) == 4
    assert list(ast.literal_eval(lines[0])) == [f"geometry/{x}" for x in ("rankme", "alpha_req", "top1_share")] + [
        "epoch"
    ]


def test_each_curve_is_printed_on_a_line_of_its_own(tmp_path, capsys):
    trainer(tmp_path, [callback(layers=[1, -1])], max_steps=1).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "geometry/" in line]
    assert [sorted(key.split("/")[2] for key in ast.literal_eval(line) if "/" in key) for line in lines] == [
        [layer] * 3 for layer in ("layer1", "layer3")
    ] * 2


def test_gradient_accumulation_does_not_measure_twice(tmp_path):
    trainer(tmp_path, [callback(schedule=Schedule(every=1, per_decade=0))]).train()
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == list(range(UPDATES + 1))


def test_last_measurement_is_of_the_last_weights_not_of_the_best(tmp_path):
    """`load_best_model_at_end` puts other weights in place before `on_train_end`."""
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}

    added = callback()
    made = trainer(
        tmp_path,
        [Keep(), added],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first checkpoint is the "best"
        learning_rate=5e-2,
    )
    made.train()
    assert made.state.best_global_step < UPDATES
    last = read_records(tmp_path / "geometry.jsonl")[-1]
    fresh = tiny.model()
    fresh.load_state_dict(seen[UPDATES])
    [expected] = added.monitor.measure(fresh, UPDATES)
    added.monitor.close()
    assert last["rankme"] == expected.metrics["rankme"]


def test_run_stopped_early_is_measured_at_its_last_update(tmp_path):
    made = trainer(
        tmp_path,
        [EarlyStoppingCallback(early_stopping_patience=1), callback(schedule=Schedule(every=100, per_decade=0))],
        max_steps=50,
        learning_rate=0.5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    made.train()
    assert made.state.global_step < 50
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, made.state.global_step]


def test_resumed_run_goes_on_in_the_same_file(tmp_path):
    first = trainer(tmp_path, [callback()], max_steps=6, save_strategy="steps", save_steps=3)
    first.train()
    second = trainer(tmp_path, [callback()], max_steps=6, save_strategy="steps", save_steps=3)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    records = read_records(tmp_path / "geometry.jsonl")
    assert [record["step"] for record in records] == [0, 2, 4, 6]
    assert not (tmp_path / "geometry-2.jsonl").exists()


def test_run_that_was_interrupted_is_resumed_in_its_own_file(tmp_path):
    """In one process, as after a notebook's stop button, with an accidental restart in between."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    saving = dict(save_strategy="steps", save_steps=3)
    interrupted = trainer(tmp_path, [callback(), Stop()], **saving)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    trainer(tmp_path, [callback()], max_steps=2, save_strategy="no").train()
    trainer(tmp_path, [callback()], **saving).train(resume_from_checkpoint=True)
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, 2, 4, 6]
    assert [record["step"] for record in read_records(tmp_path / "geometry-2.jsonl")] == [0, 2]
    assert not (tmp_path / "geometry-3.jsonl").exists()


def test_resuming_with_another_probe_is_refused(tmp_path):
    saving = dict(save_strategy="steps", save_steps=3)
    trainer(tmp_path, [callback()], max_steps=3, **saving).train()
    other = lambda **changes: GeometryCallback(tiny.probe(seed=9), **tiny.watching(**changes))
    with pytest.raises(
        ValueError, match=r"measured with probes = .* and now has .*: give it the same, or allow_change"
    ):
        trainer(tmp_path, [other()], **saving).train(resume_from_checkpoint=True)
    trainer(tmp_path, [other(allow_change=True)], **saving).train(resume_from_checkpoint=True)
    records = read_records(tmp_path / "geometry.jsonl")
    assert [record["step"] for record in records] == [0, 2, 3, 4, 6]
    assert len({record["fingerprint"] for record in records}) == 2


def test_resuming_with_other_positions_is_refused(tmp_path):
    saving = dict(save_strategy="steps", save_steps=3)
    trainer(tmp_path, [callback()], max_steps=3, **saving).train()
    with pytest.raises(ValueError, match="measured with positions = last, and now has 2: give it the same"):
        trainer(tmp_path, [callback(positions=2)], **saving).train(resume_from_checkpoint=True)


def test_two_callbacks_that_a_checkpoint_could_not_tell_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two callbacks measure .*: label their probes differently"):
        trainer(tmp_path, [callback(), callback(positions=2)]).train()


def test_run_stopped_early_is_measured_at_its_last_update_whatever_is_saved_at_sigterm(tmp_path):
    class Never(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = True

    made = trainer(tmp_path, [callback(), Never()], eval_strategy="steps", eval_steps=3, enable_jit_checkpoint=True)
    made.train()
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, 2, 3]


def test_two_callbacks_in_one_trainer_keep_their_files_apart(tmp_path):
    saving = dict(save_strategy="steps", save_steps=3)
    both = lambda: [callback(layers=1), callback(layers=2)]
    trainer(tmp_path, both(), **saving).train()
    trainer(tmp_path, both(), **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, layer in (("geometry.jsonl", "layer1"), ("geometry-2.jsonl", "layer2")):
        records = read_records(tmp_path / name)
        assert [(record["step"], record["layer"]) for record in records] == [(step, layer) for step in (0, 2, 4, 6)]


def test_adapted_embeddings_are_read(tmp_path):
    """LoRA on the embedding, and trainable tokens: PEFT wraps it then."""
    tokens = dict(target_modules=["query_key_value"], trainable_token_indices=[3])
    for settings in (dict(target_modules=["embed_in"]), tokens):
        model = get_peft_model(tiny.model(), LoraConfig(r=2, **settings))
        [record] = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, on_error="raise").measure(model, 0)
        assert record.metrics["rankme"] > 1


def test_a_callback_can_be_copied():
    """As hyperparameter search and spawning strategies do."""
    assert copy.deepcopy(callback()).monitor.settings == callback().monitor.settings


def test_a_new_run_takes_the_next_free_name(tmp_path):
    for _ in range(2):
        trainer(tmp_path, [callback()]).train()
    assert len(read_records(tmp_path / "geometry.jsonl")) == len(read_records(tmp_path / "geometry-2.jsonl")) == 4


def test_one_callback_serves_two_runs(tmp_path):
    added = callback()
    for name in ("a", "b"):
        trainer(tmp_path / name, [added]).train()
        assert [record["step"] for record in read_records(tmp_path / name / "geometry.jsonl")] == [0, 2, 4, 6]


def test_bf16_trainer_is_measured_under_its_autocast(tmp_path):
    """The number equals an independent bf16 autocast forward of the whole model, and not the float32 one."""
    made = trainer(tmp_path, [callback(schedule=Schedule(every=100, per_decade=0))], bf16=True, max_steps=1)
    begin = tiny.model(**DROPOUT)
    made.train()
    record = read_records(tmp_path / "geometry.jsonl")[0]
    assert record["precision"] == "bf16"
    ids, mask = tiny.rows()
    last = mask.sum(1) - 1
    rank = {}
    for name, enabled in (("bf16", True), ("fp32", False)):
        with leave_no_trace(begin), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            states = begin(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        features = states[torch.arange(len(ids)), last].double().numpy()
        rank[name] = reference_rank(features)
    assert record["rankme"] == pytest.approx(rank["bf16"], rel=5e-3)
    assert abs(record["rankme"] - rank["bf16"]) < abs(record["rankme"] - rank["fp32"])


def reference_rank(features):
    import numpy as np

    share = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    share = share / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_tokens_seen_are_recorded_where_the_trainer_counts_them(tmp_path):
    trainer(tmp_path, [callback()], include_num_input_tokens_seen="all").train()
    tokens = [record["tokens"] for record in read_records(tmp_path / "geometry.jsonl")]
    assert tokens[0] == 0
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_window": (11, 100)}, r"alpha_window=\(11, 100\).*alpha_window=\("),
        ({"layers": "gpt_neox.layers.9"}, "did you mean"),
        ({"layers": 9}, "3 blocks"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_update(settings, message, tmp_path):
    made = trainer(tmp_path, [GeometryCallback(tiny.probe(256), **{"alpha_window": tiny.WINDOW} | settings)])
    with pytest.raises(ValueError, match=message):
        made.train()
    assert made.state.global_step == 0


def test_probe_of_another_vocabulary_is_refused_whatever_on_error_says(tmp_path):
    from geomcallbacks import ProbeSet

    probe = ProbeSet.from_token_ids(torch.full((20, 5), tiny.VOCABULARY))
    made = trainer(tmp_path, [GeometryCallback(probe, alpha_window=tiny.WINDOW, on_error="warn")])
    with pytest.raises(ValueError, match=f"token id {tiny.VOCABULARY}.*ends at {tiny.VOCABULARY - 1}"):
        made.train()


def test_unknown_setting_is_refused_at_construction():
    with pytest.raises(TypeError, match="layer"):
        GeometryCallback(tiny.probe(), layer=3)


def test_nothing_is_written_outside_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path / "out", [callback()]).train()
    assert os.listdir(tmp_path) == ["out"]
    assert {path.name for path in Path(tmp_path / "out").iterdir()} >= {"geometry.jsonl", "geometry-spectra"}
