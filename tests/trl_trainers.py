"""Trainers of TRL on texts of `tiny`, that have not begun. What each takes: `drives.make_trainer`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from datasets import Dataset
from drives import TRAINING
from transformers import PreTrainedModel, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer


def sft(folder: Path, callbacks: list[Any], model: PreTrainedModel, **changes: Any) -> Trainer:
    args = SFTConfig(str(folder), max_length=24, **TRAINING | changes)
    data = Dataset.from_dict({"text": tiny.texts(32)})
    return SFTTrainer(model, args, train_dataset=data, processing_class=tiny.tokenizer(), callbacks=callbacks)


def dpo(folder: Path, callbacks: list[Any], model: PreTrainedModel, **changes: Any) -> Trainer:
    args = DPOConfig(str(folder), max_length=24, **TRAINING | changes)
    prompts = [text + " " for text in tiny.texts(32, words=6)]
    good, bad = (tiny.texts(32, words=6, seed=seed) for seed in (3, 4))
    data = Dataset.from_dict({"prompt": prompts, "chosen": good, "rejected": bad})
    given = dict(train_dataset=data, processing_class=tiny.tokenizer(), callbacks=callbacks)
    return DPOTrainer(model, copy.deepcopy(model), args, **given)


def grpo(folder: Path, callbacks: list[Any], model: PreTrainedModel, **changes: Any) -> Trainer:
    args = GRPOConfig(str(folder), num_generations=4, max_completion_length=4, **TRAINING | changes)
    reward = lambda completions, **_: [float(len(set(text.split()))) for text in completions]
    data = Dataset.from_dict({"prompt": tiny.texts(32, words=4)})
    given = dict(train_dataset=data, processing_class=tiny.tokenizer(), callbacks=callbacks)
    return GRPOTrainer(model, reward, args, **given)


MAKERS: dict[str, Callable[..., Trainer]] = {"SFTTrainer": sft, "DPOTrainer": dpo, "GRPOTrainer": grpo}
