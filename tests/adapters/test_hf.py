"""What is special to Trainer and TRL: their trainers, the terminal, other trackers, the best model, bf16, PEFT."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from drives import DROPOUT, TRAINING, TrainerHook, differences, make_trainer, trained, watcher
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback
from transformers.integrations import integration_utils
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.reading.no_trace import leave_no_trace


def geometry(**settings: Any) -> Any:
    return watcher("trainer", "geometry", Path(), **settings)


def behaviour(**settings: Any) -> Any:
    return watcher("trainer", "behaviour", Path(), **settings)


def sft(folder: Path, callbacks: list[Any]) -> Trainer:
    args = SFTConfig(output_dir=str(folder), max_length=24, **TRAINING)
    data = Dataset.from_dict({"text": tiny.texts(32)})
    given = {"train_dataset": data, "processing_class": tiny.tokenizer(), "callbacks": callbacks}
    return SFTTrainer(tiny.model(**DROPOUT), args, **given)


def dpo(folder: Path, callbacks: list[Any]) -> Trainer:
    args = DPOConfig(output_dir=str(folder), max_length=24, **TRAINING)
    prompts = [text + " " for text in tiny.texts(32, words=6)]
    good, bad = tiny.texts(32, words=6, seed=3), tiny.texts(32, words=6, seed=4)
    data = Dataset.from_dict({"prompt": prompts, "chosen": good, "rejected": bad})
    given = {"train_dataset": data, "processing_class": tiny.tokenizer(), "callbacks": callbacks}
    return DPOTrainer(tiny.model(**DROPOUT), tiny.model(**DROPOUT), args, **given)


def grpo(folder: Path, callbacks: list[Any]) -> Trainer:
    args = GRPOConfig(output_dir=str(folder), num_generations=4, max_completion_length=4, **TRAINING)
    reward = lambda completions, **_: [float(len(set(text.split()))) for text in completions]
    data = Dataset.from_dict({"prompt": tiny.texts(32, words=4)})
    given = {"train_dataset": data, "processing_class": tiny.tokenizer(), "callbacks": callbacks}
    return GRPOTrainer(tiny.model(**DROPOUT), reward, args, **given)


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_trl_trains_bit_identically_with_and_without(make: Callable[..., Trainer], tmp_path: Path) -> None:
    plain = trained(make(tmp_path / "plain", []))
    watched = trained(make(tmp_path / "watched", [geometry(layers=[0, -1]), behaviour()]))
    assert differences(plain, watched) == []
    assert sum("loss" in row for row in plain.losses) == 4
    for file in ("geometry.jsonl", "behaviour.jsonl"):
        assert {record["step"] for record in read_records(tmp_path / "watched" / file)} == {0, 2, 4}


def test_other_trackers_get_the_row_through_their_own_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    class Notebook(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            rows.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
    make_trainer(tmp_path, [Notebook(), geometry()]).train()
    assert [step for step, logs in rows if "geometry/rankme" in logs] == [0, 2, 4]


def test_each_curve_and_each_measure_is_printed_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tmp_path, [geometry(layers=[0, 1]), behaviour()], max_steps=2).train()
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    ours = [[key for key in line if "/" in key] for line in lines]
    curves = [
        [f"geometry/probe/{layer}/{name}" for name in ("rankme", "alpha_req", "top1_share")]
        for layer in ("layer0", "layer1")
    ]
    assert [keys for keys in ours if keys and keys[0].startswith("geometry")] == curves * 2
    names = [{key.split("/")[1] for key in keys} for keys in ours if keys and keys[0].startswith("behaviour")]
    assert names == [{"held_out"}, {"pairs"}, {"task"}, {"careless"}] * 2


@pytest.mark.parametrize("saves_at_sigterm", [False, True])
def test_the_last_weights_are_measured_not_the_best(saves_at_sigterm: bool, tmp_path: Path) -> None:
    """Of a run that an evaluation stops; Trainer loads the best checkpoint before `on_train_end`."""
    seen = {}

    class Stops(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    def keep(update: int, model: torch.nn.Module) -> None:
        seen[update] = copy.deepcopy(model.state_dict())

    each = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True)
    best = dict(metric_for_best_model="eval_loss", greater_is_better=True)  # the first is the "best"
    added = [TrainerHook(keep), geometry(), Stops()]
    made = make_trainer(tmp_path, added, enable_jit_checkpoint=saves_at_sigterm, **each, **best)
    made.train()
    assert made.state.best_global_step < 3
    records = read_records(tmp_path / "geometry.jsonl")
    assert [record["step"] for record in records] == [0, 2, 3]
    fresh = tiny.model(**DROPOUT)
    fresh.load_state_dict(seen[3])
    [expected] = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW).measure(fresh, 3)
    assert records[-1]["rankme"] == expected.metrics["rankme"]


def rank(features_nd: np.ndarray) -> float:
    share = np.linalg.svd(features_nd - features_nd.mean(0), compute_uv=False) ** 2
    share = share / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_bf16_is_measured_under_the_autocast_of_training(tmp_path: Path) -> None:
    """Geometry is that of a forward pass of the whole model under bf16 autocast, and not the float32 one; a measure is
    given the model itself, in evaluation, without gradients, under the same autocast.
    """
    seen = []

    def look(model: torch.nn.Module) -> dict[str, float]:
        modes = any(module.training for module in model.modules())
        seen.append((type(model).__name__, modes, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return {"x": torch.tensor(1)}

    make_trainer(tmp_path, [geometry(), behaviour(measures={"look": look})], bf16=True, max_steps=1).train()
    assert seen == [("GPTNeoXForCausalLM", False, False, True)] * 2
    record = read_records(tmp_path / "geometry.jsonl")[0]
    assert record["precision"] == "bf16"
    model, (ids, mask), wanted = tiny.model(**DROPOUT), tiny.rows(), {}
    for enabled in (True, False):
        with leave_no_trace(model), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        wanted[enabled] = rank(states[torch.arange(len(ids)), mask.sum(1) - 1].double().numpy())
    assert record["rankme"] == pytest.approx(wanted[True], rel=5e-3)
    assert abs(record["rankme"] - wanted[True]) < abs(record["rankme"] - wanted[False])


@pytest.mark.parametrize(
    "adapted",
    [
        {"target_modules": ["query_key_value"]},
        {"target_modules": ["embed_in"]},
        {"target_modules": ["query_key_value"], "trainable_token_indices": [3]},
    ],
    ids=["blocks", "embedding", "tokens"],
)
def test_lora_is_measured(adapted: dict[str, Any], tmp_path: Path) -> None:
    model = get_peft_model(tiny.model(), LoraConfig(r=2, **adapted))
    make_trainer(tmp_path, [geometry(), behaviour()], model=model, bf16=True, max_steps=2).train()
    for file, key in (("geometry.jsonl", "rankme"), ("behaviour.jsonl", "held_out/loss")):
        first, last = (record[key] for record in read_records(tmp_path / file))
        assert first > 1
        assert last > 1
        assert first != last


def test_tokens_seen_are_recorded_where_the_trainer_counts_them(tmp_path: Path) -> None:
    make_trainer(tmp_path, [geometry()], include_num_input_tokens_seen="all").train()
    assert [record["tokens"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, 160, 320]
