"""Tiny training runs under a plain loop, Trainer and Lightning, with dropout, shuffling, gradient accumulation and
gradient checkpointing; and what each has ended with.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
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
from geomcallbacks import GeometryMonitor, Schedule, read_records
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss, Completions, PreferenceScore, RolloutScore

UPDATES, ACCUMULATED = 4, 2
DROPOUT = dict(attention_dropout=0.1, hidden_dropout=0.1)
EACH, SECOND, FAR = (Schedule(every=every, per_decade=0) for every in (1, 2, 1000))
MEASURED = [0, 2, 4]  # by SECOND

#: What measures in a run: a monitor in the plain loop, else a callback.
WATCHERS: dict[tuple[str, str], Any] = {
    ("loop", "geometry"): GeometryMonitor,
    ("loop", "behaviour"): BehaviourMonitor,
    ("trainer", "geometry"): geomcallbacks.hf.GeometryCallback,
    ("trainer", "behaviour"): geomcallbacks.behaviour.hf.BehaviourCallback,
    ("lightning", "geometry"): geomcallbacks.lightning.GeometryCallback,
    ("lightning", "behaviour"): geomcallbacks.behaviour.lightning.BehaviourCallback,
}
SUBJECTS = ("geometry", "behaviour")
#: Called after each update, before it is measured; True ends the run there.
Hook = Callable[[int, nn.Module], Any]


@dataclass(frozen=True)
class Ended:
    """What a run has ended with.

    Attributes:
        tensors: weights and optimiser state by name.
        random: every global random state.
        losses: rows of the framework's own log.
        ours: rows of ours in that log, each with its `step`; a plain loop has none.
    """

    tensors: dict[str, Tensor]
    random: tuple[object, ...]
    losses: list[dict[str, Any]]
    ours: list[dict[str, Any]]


def ended(model: nn.Module, optimiser: Any, log: list[dict[str, Any]]) -> Ended:
    tensors = dict(model.state_dict())
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser {index} {key}": torch.as_tensor(value) for key, value in state.items()}
    ours = [row for row in log if any(key.startswith(SUBJECTS) for key in row)]
    return Ended(tensors, tiny.random_states(), [row for row in log if row not in ours], ours)


def differences(one: Ended, other: Ended) -> list[str]:
    """Names of what two runs do not have in common to the last bit."""
    assert one.tensors.keys() == other.tensors.keys()
    assert one.losses
    found = [name for name, value in one.tensors.items() if not torch.equal(value, other.tensors[name])]
    found += ["losses"] if json.dumps(one.losses) != json.dumps(other.losses) else []
    return found + (["random states"] if one.random != other.random else [])


def steps(file: Path) -> list[int]:
    """The updates of a record file."""
    return [record["step"] for record in read_records(file)]


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
    """What measures every second update and raises where it fails. A plain loop writes to `folder`."""
    own = {"probe": tiny.probe(), "alpha_window": tiny.WINDOW} if subject == "geometry" else {"measures": measures()}
    path = {"path": folder / f"{subject}.jsonl"} if framework == "loop" else {}  # adapters know their run's folder
    return WATCHERS[framework, subject](**{"schedule": SECOND, "on_error": "raise"} | own | path | changes)


def read_by(framework: str, forward: Callable[[nn.Module, Tensor, Tensor], Any]) -> dict[str, Any]:
    """Settings with which `forward(backbone, ids, mask)` runs each batch of the probe."""
    name = "network.gpt_neox" if framework == "lightning" else "gpt_neox"
    return {"module": name, "forward": lambda model, ids, mask: forward(model.get_submodule(name), ids, mask)}


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return model(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss


def batches(shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tiny.rows(32, seed=5)), batch_size=2, shuffle=shuffle)


def loop(folder: Path, watchers: list[Any], hook: Hook | None = None, save: bool = False, resume: int = 0) -> Ended:
    """A loop of the user's own. `save` keeps each update as `step-N.pt`, from which `resume=N` goes on."""
    set_seed(3)
    model = tiny.model(**DROPOUT)
    model.gradient_checkpointing_enable()
    optimiser, log = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    if resume:
        kept = torch.load(folder / f"step-{resume}.pt", weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        for watch, state in zip(watchers, kept["watchers"], strict=True):
            watch.load_state_dict(json.loads(state))
    try:
        for watch in watchers:
            watch.step(model, resume)
        rows = cycle(batches())
        for update in range(resume + 1, UPDATES + 1):
            for _ in range(ACCUMULATED):
                loss = loss_of(model, next(rows))
                loss.backward()
                log.append({"loss": loss.item()})
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
    return ended(model, optimiser, log)


TRAINING = {
    "max_steps": UPDATES, "per_device_train_batch_size": 2, "gradient_accumulation_steps": ACCUMULATED,
    "gradient_checkpointing": True, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no",
    "report_to": "none", "use_cpu": True, "bf16": False, "seed": 3, "disable_tqdm": True,
}  # fmt: skip
_CLOCK = ("runtime", "per_second", "flos", "time")


class TrainerHook(TrainerCallback):
    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        control.should_training_stop |= bool(self.hook(state.global_step, model))


def token_dataset(n: int) -> Dataset:
    ids, mask = (rows.tolist() for rows in tiny.rows(n, seed=5))
    return Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": ids})


def make_trainer(folder: Path, callbacks: list[Any], model: Any = None, **changes: Any) -> Trainer:
    """A Trainer that has not begun."""
    args = TrainingArguments(output_dir=str(folder), **TRAINING | changes)
    data = {"train_dataset": token_dataset(32), "eval_dataset": token_dataset(4)}
    return Trainer(model or tiny.model(**DROPOUT), args, callbacks=callbacks, **data)


def trained(made: Trainer, resume: Path | None = None) -> Ended:
    """Train, and return what that ends with; of the log without what a clock says."""
    made.train(resume_from_checkpoint=resume and str(resume))
    timed = lambda key: any(word in key for word in _CLOCK)
    log = [{key: value for key, value in row.items() if not timed(key)} for row in made.state.log_history]
    return ended(made.model, made.optimizer, log)


def trainer(
    folder: Path, watchers: list[Any], hook: Hook | None = None, save: bool = False, resume: int = 0, **changes: Any
) -> Ended:
    """The same under Trainer, with its own checkpoints."""
    saving = {"save_strategy": "steps", "save_steps": 1} if save else {}
    made = make_trainer(folder, [*([TrainerHook(hook)] if hook else []), *watchers], **saving | changes)
    return trained(made, folder / f"checkpoint-{resume}" if resume else None)


class Module(L.LightningModule):
    """A causal language model under a Lightning module."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.network = tiny.model(**DROPOUT | changes)
        self.network.gradient_checkpointing_enable()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = loss_of(self.network, batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", loss_of(self.network, batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class LightningHook(L.Callback):
    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.should_stop |= bool(self.hook(trainer.global_step, pl_module.network))


def fit(
    folder: Path, callbacks: list[Any], module: Any = None, data: Any = None, resume: Path | None = None, **changes: Any
) -> tuple[L.Trainer, Any]:
    """Fit a module under a Lightning Trainer that logs to `folder/metrics.csv`."""
    L.seed_everything(3, verbose=False)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=saves)
    length = dict(max_steps=UPDATES, accumulate_grad_batches=ACCUMULATED, log_every_n_steps=1)
    logs = dict(default_root_dir=folder, logger=CSVLogger(folder, name="", version=""))
    made = L.Trainer(**quiet | length | logs | changes, accelerator="cpu", callbacks=callbacks)
    module = module or Module()
    made.fit(module, batches() if data is None else data, ckpt_path=resume)
    return made, module


def each_checkpoint(folder: Path, every: int = 1) -> ModelCheckpoint:
    """Keeps every so many updates as `step=N.ckpt`."""
    return ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, filename="{step}")


def lightning(
    folder: Path, watchers: list[Any], hook: Hook | None = None, save: bool = False, resume: int = 0, **changes: Any
) -> Ended:
    """The same under Lightning, with its own checkpoints."""
    callbacks = [*([LightningHook(hook)] if hook else []), *watchers, *([each_checkpoint(folder)] if save else [])]
    made, module = fit(folder, callbacks, resume=folder / f"step={resume}.ckpt" if resume else None, **changes)
    with (folder / "metrics.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return ended(module, made.optimizers[0], rows)


DRIVES: dict[str, Callable[..., Ended]] = {"loop": loop, "trainer": trainer, "lightning": lightning}
