"""What is special to Trainer and TRL: their trainers, the terminal, other trackers, the best model, PEFT."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import drives
import pytest
import tiny
import torch
from drives import DROPOUT, MEASURED, TrainerHook, differences, make_trainer, steps, trained, watcher
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from trl_trainers import MAKERS

from geomcallbacks import GeometryMonitor, read_records


def geometry(**settings: Any) -> Any:
    return watcher("trainer", "geometry", Path(), **settings)


def behaviour(**settings: Any) -> Any:
    return watcher("trainer", "behaviour", Path(), **settings)


@pytest.mark.parametrize("name", MAKERS)
def test_trl_trains_bit_identically_with_and_without(name: str, tmp_path: Path) -> None:
    plain, watched = (
        trained(MAKERS[name](tmp_path, callbacks, tiny.model(**DROPOUT)))
        for callbacks in ([], [geometry(layers=[0, -1]), behaviour()])
    )
    assert differences(plain, watched) == []
    assert sum("loss" in row for row in plain.losses) == 4
    assert sorted(set(steps(tmp_path / "geometry.jsonl"))) == steps(tmp_path / "behaviour.jsonl") == MEASURED


def test_the_terminal_and_other_trackers_are_given_each_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal has a line for each curve and each measure; a tracker gets rows through its own callback."""
    logged = []

    class Notebook(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append((state.global_step, set(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
    make_trainer(tmp_path, [Notebook(), geometry(layers=[0, 1]), behaviour()]).train()
    keys = [f"geometry/{layer}/rankme" for layer in ("layer0", "layer1")] + ["behaviour/held_out/loss"]
    for key in keys:
        assert [step for step, names in logged if key in names] == MEASURED
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    printed = [{key.rpartition("/")[0] for key in line} - {""} for line in lines]
    curves = ["geometry/layer0", "geometry/layer1", *(f"behaviour/{name}" for name in drives.measures())]
    assert [names for names in printed if names] == [{curve} for curve in curves] * 3


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


@pytest.mark.parametrize("more", [{}, {"trainable_token_indices": [3]}, {"target_modules": ["embed_in"]}], ids=str)
def test_lora_is_measured(more: dict[str, Any], tmp_path: Path) -> None:
    """Also where PEFT wraps the embedding."""
    model = get_peft_model(tiny.model(), LoraConfig(**{"r": 2, "target_modules": ["query_key_value"]} | more))
    make_trainer(tmp_path, [geometry(), behaviour()], model=model, bf16=True, max_steps=2).train()
    for file, key in (("geometry.jsonl", "rankme"), ("behaviour.jsonl", "held_out/loss")):
        first, last = (record[key] for record in read_records(tmp_path / file))
        assert 1 < first != last > 1


def test_tokens_seen_are_recorded_where_the_trainer_counts_them(tmp_path: Path) -> None:
    make_trainer(tmp_path, [geometry()], include_num_input_tokens_seen="all").train()
    assert [record["tokens"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, 160, 320]
