"""What test_frameworks runs in each of two processes: trainings by Trainer, TRL and Lightning, replicated (DDP) and
sharded (FSDP2 under fsdp2.yaml, DeepSpeed under zero3.yaml), each once with our callback and once without.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpo
import launcher
import lightning as L
import micro
import tiny
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from drives import make_trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl_trainers import MAKERS

from geomcallbacks import Schedule, hf, lightning, read_records
from geomcallbacks.behaviour import CompletionLoss, Completions
from geomcallbacks.behaviour.hf import BehaviourCallback as HFBehaviour
from geomcallbacks.behaviour.lightning import BehaviourCallback as LightningBehaviour

#: Trainings under each file of recipes/accelerate: who trains, how weights are spread, and the precision.
RUNS = {
    "fsdp2": [
        "Trainer ddp", "Trainer ddp bf16", "Trainer fsdp2", "Trainer fsdp2 bf16", "SFTTrainer fsdp2",
        "DPOTrainer fsdp2", "GRPOTrainer fsdp2", "Lightning ddp", "Lightning fsdp2", "Lightning fsdp2 bf16-true",
        "Lightning fsdp2 bf16-mixed",
    ],
    "zero3": ["Trainer zero3", "Trainer zero3 bf16", "SFTTrainer zero3"],
}  # fmt: skip
EVERY = Schedule(every=1, per_decade=0)
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
    try:
        yield
    finally:
        os.environ[FSDP] = "true"


class Seen:
    """What a run shows of itself: weights after every update, losses, and how each forward pass was computed."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.losses: list[float] = []
        self.rows: list[dict[str, Any]] = []  # that Trainer has logged
        self.passes: set[tuple[bool, bool]] = set()  # (training, autocast)
        self.sharded = True  # whenever weights were looked at
        self.left: list[Any] = []  # modes, hooks and attributes of all modules at the end

    def watch(self, model: nn.Module) -> None:
        def note(block: nn.Module, args: Any) -> None:
            self.passes.add((block.training, torch.is_autocast_enabled("cpu")))

        model.model.layers[0].register_forward_pre_hook(note)

    def keep(self, model: nn.Module, step: int) -> None:
        parameters = dict(model.named_parameters())
        self.sharded &= all(isinstance(value, DTensor) or hasattr(value, "ds_id") for value in parameters.values())
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
            hooks = [len(child._forward_hooks), len(child._forward_pre_hooks)]
            self.left.append([name, child.training, hooks, sorted(vars(child))])


class Keeper(TrainerCallback):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def on_train_begin(self, args, state, control, model, **_):
        self.seen.keep(model, 0)

    def on_step_end(self, args, state, control, model, **_):
        self.seen.keep(model, state.global_step)


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


def train(name: str, folder: Path, ours: list[Any]) -> Seen:
    """One of `RUNS` with our callbacks."""
    seen, (who, how, *precision) = Seen(), name.split()
    if who == "Lightning":
        module = Module(seen, how == "fsdp2")
        sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = L.Trainer(
            accelerator="cpu", devices=2, max_steps=3, accumulate_grad_batches=2, precision=(*precision, "32-true")[0],
            strategy="ddp" if how == "ddp" else sharded, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            callbacks=[*ours, LightningKeeper()],
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(*tiny.rows(32)), batch_size=2))
        seen.end(module.model)
        return seen
    with replicated() if how == "ddp" else nullcontext():
        changes = dict(
            max_steps=3, learning_rate=5e-3, gradient_checkpointing=who == "SFTTrainer", bf16=bool(precision)
        )
        unset_hf_deepspeed_config()  # of the run before, which would make this one's model in its precision
        make = {"Trainer": make_trainer, **MAKERS}[who]
        trainer = make(folder, [*ours, Keeper(seen)], tiny.model("olmo2"), **changes)
        seen.watch(trainer.model)
        trainer.train()
    seen.rows = trainer.state.log_history
    seen.losses = [row["loss"] for row in seen.rows if "loss" in row]
    seen.end(trainer.model)
    return seen


def compared(name: str, folder: Path) -> dict[str, Any]:
    """One training with and one without our callback; the weights of the second go into a file for the test."""
    callback = lightning.GeometryCallback if name.startswith("Lightning") else hf.GeometryCallback
    torch.manual_seed(0)
    watched = train(name, folder, [callback(tiny.probe(), **tiny.watching(schedule=EVERY))])
    torch.manual_seed(0)
    alone = train(name, folder / "alone", [])
    if dist.get_rank() == 0:
        torch.save(alone.weights, folder / "weights.pt")
    same = [micro.equal(weights, alone.weights[step]) for step, weights in watched.weights.items()]
    return {
        "sharded": [watched.sharded, alone.sharded],
        "losses": [watched.losses, alone.losses],
        "weights are the same": same,
        "sum of weights": sum(float(weight.double().sum()) for weight in alone.weights[3].values()),
        "left": [watched.left, alone.left],
        "passes": [sorted(watched.passes), sorted(alone.passes)],
        "records": read_records(folder / "geometry.jsonl"),
    }


def broken(model: nn.Module) -> dict[str, float]:
    raise KeyError("injected")


def refused(name: str, folder: Path, behaviour: Any) -> str:
    """With which error a run ends that measures `broken`."""
    try:
        train(name, folder / "refused", [behaviour({"broken": broken}, on_error="raise")])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def behaviour_of_replicas(folder: Path) -> dict[str, Any]:
    """Behaviour rows that each process has logged, and its warnings."""
    texts = tiny.texts(6, words=4), tiny.texts(6, words=5, seed=3)
    rows = Completions.from_texts(*texts, tiny.tokenizer(), max_length=20)
    by_rank = lambda model: {"rank": dist.get_rank() + 0.1, "missing": math.nan}
    measures = {"loss": CompletionLoss(rows), "who": by_rank, "broken": broken}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = train("Trainer ddp", folder, [HFBehaviour(measures, schedule=EVERY)])
    logged = [row for row in seen.rows if "behaviour/loss/loss" in row]
    failed = [str(w.message) for w in caught if "was not measured" in str(w.message)]
    return {"rows": logged, "warnings": failed, "raised": refused("Trainer ddp", folder, HFBehaviour)}


def main(folder: Path, base: Path) -> None:
    torch.set_num_threads(1)
    shard_on_cpus()
    config = "zero3" if ZERO3 in os.environ else "fsdp2"
    found: dict[str, Any] = {name: compared(name, folder / name) for name in RUNS[config]}
    found["Trainer behaviour"] = refused(f"Trainer {config}", folder, HFBehaviour)
    if config == "fsdp2":
        found["Lightning behaviour"] = refused("Lightning fsdp2", folder, LightningBehaviour)
        found["behaviour"] = behaviour_of_replicas(folder / "behaviour")
    grpo.VERIFIERS["integer"] = lambda: micro.EVEN_LENGTH  # a policy of this size would earn no reward
    for recipe, rows in {"sft": 2, "dpo": 2, "grpo": 4}.items():
        micro.run(recipe, folder / recipe, base=base, per_device_train_batch_size=rows)
    launcher.report(folder, found | {"world size": dist.get_world_size()})
    launcher.leave()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
