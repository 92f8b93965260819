"""Tiny training runs under a plain loop, Trainer and Lightning, with dropout, shuffling, gradient accumulation and
gradient checkpointing; and what each has ended with.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import tiny
import torch
from datasets import Dataset
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import geomcallbacks.behaviour.hf
import geomcallbacks.behaviour.lightning
import geomcallbacks.hf
import geomcallbacks.lightning
from geomcallbacks import GeometryMonitor, Schedule
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss, Completions, PreferenceScore, RolloutScore

UPDATES, ACCUMULATED = 4, 2
DROPOUT = dict(attention_dropout=0.1, hidden_dropout=0.1)
EACH, FAR = Schedule(every=1, per_decade=0), Schedule(every=1000, per_decade=0)

#: What measures in a run: a monitor in the plain loop, else a callback.
WATCHERS: dict[tuple[str, str], Any] = {
    ("loop", "geometry"): GeometryMonitor,
    ("loop", "behaviour"): BehaviourMonitor,
    ("trainer", "geometry"): geomcallbacks.hf.GeometryCallback,
    ("trainer", "behaviour"): geomcallbacks.behaviour.hf.BehaviourCallback,
    ("lightning", "geometry"): geomcallbacks.lightning.GeometryCallback,
    ("lightning", "behaviour"): geomcallbacks.behaviour.lightning.BehaviourCallback,
}
#: Called after each update, before it is measured; True ends the run there.
Hook = Callable[[int, nn.Module], Any]


@dataclass(frozen=True)
class Ended:
    """What a run has ended with: weights and optimiser state by name, loss rows, every global random state."""

    tensors: dict[str, Tensor]
    losses: list[dict[str, Any]]
    random: tuple[object, ...]


def ended(model: nn.Module, optimiser: Any, losses: list[dict[str, Any]]) -> Ended:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser {index} {key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return Ended(tensors, losses, tiny.random_states())


def differences(one: Ended, other: Ended) -> list[str]:
    """Names of what two runs do not have in common to the last bit."""
    assert one.tensors.keys() == other.tensors.keys()
    assert one.losses
    found = [name for name, value in one.tensors.items() if not torch.equal(value, other.tensors[name])]
    found += ["losses"] if json.dumps(one.losses) != json.dumps(other.losses) else []
    return found + (["random states"] if one.random != other.random else [])


def completions(seed: int = 3) -> Completions:
    texts = tiny.texts(6, words=4), tiny.texts(6, words=5, seed=seed)
    return Completions.from_texts(*texts, tiny.tokenizer(), max_length=20)


def careless(model: nn.Module) -> dict[str, float]:
    """What a measure of a user's own may do."""
    model.train()
    return {"noise": float(torch.rand(1)) + random.random() + float(np.random.rand())}


def measures() -> dict[str, Any]:
    """Two that score, one that samples, and one that draws of every global random state."""
    reward = lambda completion, prompt: float(len(completion))
    sampling = dict(answer=str.strip, samples=2, max_new_tokens=3)
    rollouts = RolloutScore(tiny.texts(2, words=3), reward, tiny.tokenizer(), **sampling)
    pairs = PreferenceScore(completions(), completions(seed=4))
    return {"held_out": CompletionLoss(completions()), "pairs": pairs, "task": rollouts, "careless": careless}


def watcher(framework: str, subject: str, folder: Path, **changes: Any) -> Any:
    """What measures every second update, raises where it fails, and writes to `folder`."""
    subject_settings = {"probe": tiny.probe(), **tiny.watching()}
    if subject == "behaviour":
        subject_settings = {"measures": measures(), "schedule": subject_settings["schedule"], "on_error": "raise"}
    path = {"path": folder / f"{subject}.jsonl"} if framework == "loop" else {}  # adapters know their run's folder
    return WATCHERS[framework, subject](**subject_settings | path | changes)


def read_by(framework: str, forward: Callable[[nn.Module, Tensor, Tensor], Any]) -> dict[str, Any]:
    """Settings with which `forward(backbone, ids, mask)` runs each batch of the probe."""
    name = "network.gpt_neox" if framework == "lightning" else "gpt_neox"
    return {"module": name, "forward": lambda model, ids, mask: forward(model.get_submodule(name), ids, mask)}


def batches(shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tiny.rows(32, seed=5)), batch_size=2, shuffle=shuffle)


def loop(
    folder: Path, watchers: Sequence[Any], *, hook: Hook | None = None, save: bool = False, resume: int | None = None
) -> Ended:
    """A loop of the user's own; `save` keeps each update as `step-N.pt`, from which `resume=N` goes on."""
    set_seed(3)
    model = tiny.model(**DROPOUT)
    model.gradient_checkpointing_enable()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    if resume is not None:
        kept = torch.load(folder / f"step-{resume}.pt", weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        for watch, state in zip(watchers, kept["watchers"], strict=True):
            watch.load_state_dict(json.loads(state))
    try:
        for watch in watchers:
            watch.step(model, resume or 0)
        rows = cycle(batches())
        for update in range((resume or 0) + 1, UPDATES + 1):
            for _ in range(ACCUMULATED):
                ids, mask = next(rows)
                loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
                loss.backward()
                losses.append({"loss": loss.item()})
            optimiser.step()
            optimiser.zero_grad()
            stop = bool(hook and hook(update, model))
            for watch in watchers:
                watch.step(model, update, last=stop or update == UPDATES)
            if save:
                states = [json.dumps(watch.state_dict()) for watch in watchers]
                kept = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "watchers": states}
                torch.save(kept, folder / f"step-{update}.pt")
            if stop:
                break
    finally:
        for watch in watchers:
            watch.close()
    return ended(model, optimiser, losses)


TRAINING = dict(
    max_steps=UPDATES,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=ACCUMULATED,
    gradient_checkpointing=True,
    learning_rate=1e-2,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=False,
    seed=3,
    disable_tqdm=True,
)
_CLOCK = ("runtime", "per_second", "flos", "time")


class TrainerHook(TrainerCallback):
    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        control.should_training_stop |= bool(self.hook(state.global_step, model))


def token_dataset(n: int = 32) -> Dataset:
    ids, mask = (rows.tolist() for rows in tiny.rows(n, seed=5))
    return Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": ids})


def make_trainer(folder: Path, callbacks: Sequence[Any] = (), model: Any = None, **changes: Any) -> Trainer:
    """A Trainer that has not begun."""
    args = TrainingArguments(output_dir=str(folder), **TRAINING | changes)
    data = {"train_dataset": token_dataset(), "eval_dataset": token_dataset(4)}
    return Trainer(model or tiny.model(**DROPOUT), args, callbacks=list(callbacks), **data)


def trained(made: Trainer, resume: Path | None = None) -> Ended:
    """Train, and return what it ended with: loss rows are those of `log_history`, without what a clock says."""
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    rows = [row for row in made.state.log_history if not any("geometry" in key or "behaviour" in key for key in row)]
    losses = [{key: value for key, value in row.items() if not any(word in key for word in _CLOCK)} for row in rows]
    return ended(made.model, made.optimizer, losses)


def trainer(
    folder: Path,
    watchers: Sequence[Any],
    *,
    hook: Hook | None = None,
    save: bool = False,
    resume: int | None = None,
    **changes: Any,
) -> Ended:
    """The same under Trainer, with its own checkpoints."""
    saving = {"save_strategy": "steps", "save_steps": 1} if save else {}
    hooks = [TrainerHook(hook)] if hook else []
    made = make_trainer(folder, [*hooks, *watchers], **saving | changes)
    return trained(made, None if resume is None else folder / f"checkpoint-{resume}")


class Module(L.LightningModule):
    """A causal language model under a Lightning module."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.network = tiny.model(**DROPOUT | changes)
        self.network.gradient_checkpointing_enable()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.network(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.network(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class LightningHook(L.Callback):
    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.should_stop |= bool(self.hook(trainer.global_step, pl_module.network))


def fit(
    folder: Path,
    callbacks: Sequence[Any] = (),
    module: L.LightningModule | None = None,
    data: Any = None,
    resume: Path | None = None,
    **changes: Any,
) -> tuple[L.Trainer, L.LightningModule]:
    """Fit a module under a Lightning Trainer that logs to `folder/metrics.csv`."""
    L.seed_everything(3, verbose=False)
    module = module or Module()
    settings = dict(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=UPDATES,
        accumulate_grad_batches=ACCUMULATED,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        logger=CSVLogger(folder, name="", version=""),
    )
    made = L.Trainer(**settings | changes, callbacks=list(callbacks))
    data = data if isinstance(data, tuple) else (batches() if data is None else data,)
    made.fit(module, *data, ckpt_path=resume)
    return made, module


def each_checkpoint(folder: Path, every: int = 1) -> ModelCheckpoint:
    """Keeps every so many updates as `step=N.ckpt`."""
    return ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, filename="{step}")


def lightning(
    folder: Path,
    watchers: Sequence[Any],
    *,
    hook: Hook | None = None,
    save: bool = False,
    resume: int | None = None,
    **changes: Any,
) -> Ended:
    """The same under Lightning, with its own checkpoints."""
    hooks, keep = [LightningHook(hook)] if hook else [], [each_checkpoint(folder)] if save else []
    begin = None if resume is None else folder / f"step={resume}.ckpt"
    made, module = fit(folder, [*hooks, *watchers, *keep], resume=begin, **changes)
    with (folder / "metrics.csv").open() as file:
        rows = [{"step": row["step"], "loss": row["train/loss"]} for row in csv.DictReader(file) if row["train/loss"]]
    return ended(module, made.optimizers[0], rows)


DRIVES: dict[str, Callable[..., Ended]] = {"loop": loop, "trainer": trainer, "lightning": lightning}
