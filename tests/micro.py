"""A base of some thousand parameters, and command lines that post-train it within seconds."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import dpo
import grpo
import sft
import torch
from judging.rewards import Verifier
from pretrain import PretrainSettings
from pretrain import main as pretrain
from transformers import AutoModelForCausalLM

from geomcallbacks import ProbeSet

MODULES = {"sft": sft, "dpo": dpo, "grpo": grpo}
WORDS = ["alpha", "beta", "gamma", "delta", "value", "name", "key", "total", "count", "index"]

#: A policy of this size solves no sum, and without rewards that differ nothing is learned.
EVEN_LENGTH = Verifier(read=len, right=lambda completion, wanted: len(completion) % 2 == 0)

COMMON = {
    "max_steps": 4, "every": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "disable_tqdm": True,
    "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "report_to": "none", "threads": 1, "test_rows": 12, "test_length": 112, "probe_rows": 24, "probe_length": 24,
    "positions": 4, "alpha_first": 2, "alpha_last": 12,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "sft": {"per_device_train_batch_size": 4, "max_length": 96},
    "dpo": {"per_device_train_batch_size": 4, "max_length": 96, "sampled_tokens": 64, "train_rows": 24},
    "grpo": {
        "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12, "top_k": 0, "beta": 0.0,
        "problems": 32, "test_problems": 8, "samples": 2, "many_samples": 4, "rollout_rows": 2,
    },
}  # fmt: skip


class Interrupted(RuntimeError):
    """Stands for the kill of a run."""


def module_text(seed: int) -> str:
    """A module of four short documented functions."""
    rng = random.Random(seed)
    functions = []
    for index in range(4):
        a, b, c = rng.sample(WORDS, 3)
        functions.append(
            f"def {a}_{b}_{seed}_{index}({c}):\n"
            f'    """Returns the {a} {b} {rng.randrange(10**4)}."""\n'
            f"    {a} = {c} + {rng.randrange(10**4)}\n"
            f"    return {a}\n"
        )
    return "\n\n".join(functions)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_texts(folder: Path) -> Path:
    """A data set of modules of documented functions."""
    return write_jsonl(folder / "texts.jsonl", [{"text": module_text(seed)} for seed in range(150)])


def pretraining(folder: Path, texts: Path, **changed: Any) -> PretrainSettings:
    """Settings of a pretraining run of a second."""
    values: dict[str, Any] = {
        "output_dir": str(folder), "dataset": str(texts), "vocab_size": 300, "hidden_size": 16, "layers": 1,
        "updates": 12, "batch_size": 4, "seq_length": 16, "warmup": 4, "threads": 1, "log_every": 1, "probe_rows": 24,
        "probe_length": 24, "positions": "4", "alpha_first": 2, "alpha_last": 12, "accelerator": "cpu",
        "wandb": "disabled",
    }  # fmt: skip
    return PretrainSettings(**(values | changed))


def make_base(folder: Path) -> Path:
    """Pretrains a base; its run folder."""
    pretrain(pretraining(folder / "base", write_texts(folder), seq_length=128, log_every=10, checkpoints="last"))
    return folder / "base"


def arguments(recipe: str, folder: Path, **changed: Any) -> list[str]:
    """The command line of a stage; None takes a setting away."""
    values = {"output_dir": folder, **COMMON, **OWN[recipe], **changed}
    return [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]


def run(recipe: str, folder: Path, **changed: Any) -> Path:
    """Runs a stage in this process; its folder."""
    module = MODULES[recipe]
    module.main(*module.make_parser().parse(arguments(recipe, folder, **changed)))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def start_of(chain: dict[str, Path], recipe: str) -> dict[str, Path | None]:
    """The settings that name where a stage of the chain pretrain → SFT → DPO → GRPO starts."""
    return {"base": chain["base"], "model": chain.get({"dpo": "sft", "grpo": "dpo"}.get(recipe, ""))}


def start_weights(chain: dict[str, Path], recipe: str) -> dict[str, torch.Tensor]:
    model = start_of(chain, recipe)["model"]
    return weights(model / "model" if model else chain["base"] / "checkpoints" / "step-000012")


def trace_of(model: Path, probe: Path) -> float:
    """Trace of the centred covariance of a model's last states at four positions of each row of a probe."""
    ids_nt = ProbeSet.load(probe).input_ids_nt
    chosen = torch.tensor([math.ceil(ids_nt.shape[1] * j / 4) - 1 for j in range(1, 5)])
    with torch.no_grad():
        hidden_ntd = AutoModelForCausalLM.from_pretrained(model).eval().base_model(ids_nt).last_hidden_state
    return hidden_ntd[:, chosen].flatten(0, 1).double().var(0).sum().item()
