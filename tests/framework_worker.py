"""What test_sharded_frameworks runs in each of two processes: trainings by Trainer, TRL and Lightning, replicated (DDP)
and sharded (FSDP2), each once with our callback and once without. Under zero3.yaml what test_zero3 runs: by Trainer and
TRL, sharded by ZeRO-3.

accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 2 framework_worker.py FOLDER BASE
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpo
import lightning as L
import micro
import tiny
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset
from training.posttrain import end_processes
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from geomcallbacks import Schedule, hf, lightning, read_records
from geomcallbacks.behaviour.hf import BehaviourCallback as HFBehaviour
from geomcallbacks.behaviour.lightning import BehaviourCallback as LightningBehaviour

WATCHING = tiny.watching(schedule=Schedule(every=1, per_decade=0))
ARGUMENTS = dict(
    max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, logging_steps=1,
    save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False,
)  # fmt: skip
FSDP, ZERO3 = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"  # accelerate launch has set one of them


def shard_on_cpus() -> None:
    """Accelerate shards where processes have GPUs, and on CPUs replicates without a word: let it take them for GPUs."""
    prepare = PartialState.__init__

    def init(self: PartialState, *given: Any, **settings: Any) -> None:
        prepare(self, *given, **settings)
        if "true" in (os.environ.get(FSDP), os.environ.get(ZERO3)):
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU
            if ZERO3 in os.environ:
                import deepspeed

                deepspeed.init_distributed("gloo")

    PartialState.__init__ = init


@contextmanager
def replicated() -> Iterator[None]:
    os.environ[FSDP] = "false"
    yield
    os.environ[FSDP] = "true"


class Seen:
    """What a run shows of itself: weights after every update, losses, and how each forward pass was computed."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.losses: list[float] = []
        self.passes: set[tuple[bool, bool]] = set()  # (training, autocast)
        self.sharded = False
        self.left: list[Any] = []  # hooks, and what FSDP remembers, at the end

    def watch(self, model: nn.Module) -> None:
        def note(block: nn.Module, args: Any) -> None:
            self.passes.add((block.training, torch.is_autocast_enabled("cpu")))

        model.model.layers[0].register_forward_pre_hook(note)

    def keep(self, model: nn.Module, step: int) -> None:
        parameters = dict(model.named_parameters())
        self.sharded = all(isinstance(value, DTensor) or hasattr(value, "ds_id") for value in parameters.values())
        with ExitStack() as stack:
            if ZERO3 in os.environ:
                import deepspeed

                stack.enter_context(deepspeed.zero.GatheredParameters(list(parameters.values())))
            self.weights[step] = {
                name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
                for name, value in parameters.items()
            }

    def end(self, model: nn.Module) -> None:
        for name, child in model.named_modules():
            state: Any = None
            if isinstance(child, FSDPModule):
                fsdp = child._get_fsdp_state()
                state = [fsdp._is_root, [str(parameter.sharded_state) for parameter in _parameters(fsdp)]]
            hooks = [len(child._forward_hooks), len(child._forward_pre_hooks), sorted(vars(child))]
            self.left.append([name, child.training, hooks, state])


def _parameters(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # several since torch 2.12
    return [parameter for group in groups if group is not None for parameter in group.fsdp_params]


class Keeper(TrainerCallback):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def on_train_begin(self, args, state, control, model, **_):
        self.seen.keep(model, 0)

    def on_step_end(self, args, state, control, model, **_):
        self.seen.keep(model, state.global_step)


def trained(make: Callable[..., Trainer], folder: Path, ours: list[Any]) -> Seen:
    """A training by a Trainer. `make` takes folder and callbacks."""
    seen = Seen()
    trainer = make(folder, [*ours, Keeper(seen)])
    seen.watch(trainer.model)
    trainer.train()
    seen.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    seen.end(trainer.model)
    return seen


def plain(folder: Path, callbacks: list[Any], **changes: Any) -> Trainer:
    ids, mask = tiny.rows(32)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": ids.tolist()})
    args = TrainingArguments(str(folder), **ARGUMENTS | changes)
    return Trainer(tiny.model("olmo2"), args, train_dataset=rows, callbacks=callbacks)


def sft_trainer(folder: Path, callbacks: list[Any]) -> Trainer:
    rows = Dataset.from_dict({"text": tiny.texts(32)})
    args = SFTConfig(str(folder), max_length=24, **ARGUMENTS | {"gradient_checkpointing": True})
    given = dict(train_dataset=rows, processing_class=tiny.tokenizer(), callbacks=callbacks)
    return SFTTrainer(tiny.model("olmo2"), args, **given)


def dpo_trainer(folder: Path, callbacks: list[Any]) -> Trainer:
    words = tiny.texts(96, words=12)
    rows = Dataset.from_dict({"prompt": words[:32], "chosen": words[32:64], "rejected": words[64:]})
    given = dict(train_dataset=rows, processing_class=tiny.tokenizer(), callbacks=callbacks)
    args = DPOConfig(str(folder), max_length=24, **ARGUMENTS)
    return DPOTrainer(tiny.model("olmo2"), ref_model=tiny.model("olmo2", seed=1), args=args, **given)


def grpo_trainer(folder: Path, callbacks: list[Any]) -> Trainer:
    rows = Dataset.from_dict({"prompt": tiny.texts(32, words=6)})
    args = GRPOConfig(str(folder), num_generations=2, max_completion_length=6, **ARGUMENTS)
    given = dict(train_dataset=rows, processing_class=tiny.tokenizer(), callbacks=callbacks)
    rewards = lambda completions, **_: [float(len(set(text.split()))) for text in completions]
    return GRPOTrainer(tiny.model("olmo2"), args=args, reward_funcs=rewards, **given)


class Module(L.LightningModule):
    def __init__(self, seen: Seen, shard: bool) -> None:
        super().__init__()
        self.model, self.seen, self.shard = tiny.model("olmo2"), seen, shard
        seen.watch(self.model)

    def configure_model(self) -> None:
        if self.shard and not isinstance(self.model, FSDPModule):
            for part in [*self.model.model.layers, self.model]:
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        ids_bt, mask_bt = batch
        loss = self.model(input_ids=ids_bt, attention_mask=mask_bt, labels=ids_bt).loss
        self.seen.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class LightningKeeper(L.Callback):
    def on_train_start(self, trainer, pl_module):
        pl_module.seen.keep(pl_module.model, 0)

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.seen.keep(pl_module.model, trainer.global_step)


def fitted(folder: Path, ours: list[Any], shard: bool, precision: str = "32-true") -> Seen:
    """A training by Lightning."""
    seen = Seen()
    module = Module(seen, shard)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, max_steps=3, accumulate_grad_batches=2, precision=precision, logger=False,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if shard else "ddp",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[*ours, LightningKeeper()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*tiny.rows(32)), batch_size=2))
    seen.end(module.model)
    return seen


def compared(folder: Path, run: Callable[[Path, list[Any]], Seen], callback: Callable[..., Any]) -> dict[str, Any]:
    """One training with and one without our callback; the weights of the first go into a file for the test."""
    torch.manual_seed(0)
    watched = run(folder, [callback(tiny.probe(), **WATCHING)])
    torch.manual_seed(0)
    alone = run(folder / "alone", [])
    if dist.get_rank() == 0:
        torch.save(alone.weights, folder / "weights.pt")
    same = watched.weights.keys() == alone.weights.keys() and all(
        torch.equal(weight, alone.weights[step][name])
        for step, weights in watched.weights.items()
        for name, weight in weights.items()
    )
    return {
        "processes": dist.get_world_size(),
        "sharded": watched.sharded and alone.sharded,
        "losses": [watched.losses, alone.losses],
        "weights are the same": same,
        "left": [watched.left, alone.left],
        "passes": [sorted(watched.passes), sorted(alone.passes)],
        "records": read_records(folder / "geometry.jsonl"),
    }


def refused(run: Callable[[list[Any]], Any], behaviour: Callable[..., Any]) -> str:
    """What a measure of behaviour is told; it must not have run."""
    try:
        run([behaviour({"size": lambda model: 1 / 0}, on_error="raise")])
    except ValueError as error:
        return str(error)
    return "not refused"


def by_trainer(folder: Path, name: str, make: Callable[..., Trainer]) -> tuple[str, Any]:
    return name, compared(folder / name, lambda at, ours: trained(make, at, ours), hf.GeometryCallback)


def of_zero3(folder: Path) -> Iterator[tuple[str, Any]]:
    yield by_trainer(folder, "Trainer zero3", plain)
    yield by_trainer(folder, "Trainer zero3 bf16", lambda at, ours: plain(at, ours, bf16=True))
    yield by_trainer(folder, "SFTTrainer zero3", sft_trainer)
    yield "Trainer behaviour", refused(lambda ours: trained(plain, folder / "refused", ours), HFBehaviour)


def of_fsdp2(folder: Path) -> Iterator[tuple[str, Any]]:
    def by_lightning(name: str, shard: bool, *precision: str) -> tuple[str, Any]:
        run = lambda at, ours: fitted(at, ours, shard, *precision)
        return name, compared(folder / name, run, lightning.GeometryCallback)

    bf16 = lambda at, ours: plain(at, ours, bf16=True)
    with replicated():
        yield by_trainer(folder, "Trainer ddp", plain)
        yield by_trainer(folder, "Trainer ddp bf16", bf16)
    yield by_trainer(folder, "Trainer fsdp2", plain)
    yield by_trainer(folder, "Trainer fsdp2 bf16", bf16)
    yield by_trainer(folder, "SFTTrainer fsdp2", sft_trainer)
    yield by_trainer(folder, "DPOTrainer fsdp2", dpo_trainer)
    yield by_trainer(folder, "GRPOTrainer fsdp2", grpo_trainer)
    yield by_lightning("Lightning ddp", False)
    yield by_lightning("Lightning fsdp2", True)
    yield by_lightning("Lightning fsdp2 bf16-true", True, "bf16-true")
    yield by_lightning("Lightning fsdp2 bf16-mixed", True, "bf16-mixed")
    yield "Trainer behaviour", refused(lambda ours: trained(plain, folder / "refused", ours), HFBehaviour)
    yield "Lightning behaviour", refused(lambda ours: fitted(folder / "refused", ours, True), LightningBehaviour)


def post_train(folder: Path, base: Path) -> None:
    """The recipes, sharded, each from the base."""
    grpo.VERIFIERS["integer"] = lambda: micro.EVEN_LENGTH  # a policy of this size would earn no reward
    for recipe, rows in {"sft": 2, "dpo": 2, "grpo": 4}.items():
        micro.run(recipe, folder / recipe, base=base, per_device_train_batch_size=rows)


def main(folder: Path, base: Path) -> None:
    torch.set_num_threads(1)
    shard_on_cpus()
    found = dict(of_zero3(folder) if ZERO3 in os.environ else of_fsdp2(folder))
    post_train(folder, base)
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    end_processes()
