"""Files that look like a checkpoint and cannot be read as one: what they are, and what turns them into one."""

from __future__ import annotations

from pathlib import Path

from geomcallbacks.record import record_files

_WEIGHTS = [f"{place}{kind}" for place in ("", "*/") for kind in ("*.safetensors", "*.bin", "*.pt", "*.pth")]
#: What a folder without checkpoints may be the output of, by a file of it.
_RUN_FILES = ("trainer_state.json", "training_args.bin", "hparams.yaml", "metrics.csv", "events.out.tfevents*")


def is_model(folder: Path) -> bool:
    """Whether a folder is one model, or an adapter of one."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def is_run(folder: Path) -> bool:
    """Whether a folder has checkpoints that belong to no other's curve: a run's, or a model's own."""
    return is_model(folder) or (folder / "hparams.yaml").is_file() or bool(record_files(folder))


def problem_of(folder: Path) -> str | None:
    """Return why the weights in a folder cannot be read, and what makes them readable; None where none is seen."""
    if any(_holds(folder, pattern) for pattern in ("model*.safetensors", "pytorch_model*.bin", "adapter_model.*")):
        return None if is_model(folder) else _without_config(folder)
    if shards := next((file.parent for file in sorted(folder.glob("pytorch_model_fsdp_*/.metadata"))), None):
        return f"FSDP has saved it in shards: run `accelerate merge-weights {shards} {folder}` first"
    whole = folder.with_name(f"whole-{folder.name}")
    if folder.suffix == ".ckpt" and (_holds(folder, "zero_to_fp32.py") or (folder / "checkpoint").is_dir()):
        convert = "convert_zero_checkpoint_to_fp32_state_dict"
        command = f"from lightning.pytorch.utilities.deepspeed import {convert}; {convert}('{folder}', '{whole}')"
        return f'DeepSpeed has saved it in shards: run `python -c "{command}"` first'
    if _holds(folder, "zero_to_fp32.py"):
        command = f"python {folder / 'zero_to_fp32.py'} {folder} {folder} --safe_serialization"
        return f"DeepSpeed has saved it in shards: run `{command}` first"
    if _holds(folder, "meta.pt") and _holds(folder, ".metadata"):
        command = f"python -m lightning.pytorch.utilities.consolidate_checkpoint {folder} --output_file {whole}"
        return f"Lightning's FSDP has saved it in shards: run `{command}` first"
    if shards := next((file.parent for file in (*folder.glob(".metadata"), *sorted(folder.glob("*/.metadata")))), None):
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shards} {folder}/weights.pt"
        return f"PyTorch has saved it in shards: run `{command}`, then save it with the model's save_pretrained"
    return None if is_model(folder) else _without_config(folder)


def no_checkpoints(folder: Path) -> str:
    """Say that a folder holds no checkpoints, and why that may be."""
    if problem := problem_of(folder):
        return f"{folder}: {problem}"
    runs = [str(run) for run in sorted((*folder.glob("*/"), *folder.glob("*/*/"))) if record_files(run)]
    if runs:
        return f"{folder} holds no checkpoints itself, and runs do: give one of {', '.join(runs[:4])}"
    if record_files(folder) or any(_holds(folder, pattern) for pattern in _RUN_FILES):
        return (
            f"{folder} is the folder of a run that has saved no checkpoints: train with"
            ' TrainingArguments(save_strategy="steps", save_steps=N), or under Lightning with'
            " ModelCheckpoint(every_n_train_steps=N, save_top_k=-1); where they were saved elsewhere, give that folder"
        )
    kinds = "none of checkpoint-N, step-N, checkpoints/step-N, *.ckpt, *.gguf, and no config.json of a model"
    return f"{folder} holds no checkpoints: {kinds}; give the folder that does"


def _without_config(folder: Path) -> str | None:
    found = next((file.name for each in _WEIGHTS for file in sorted(folder.glob(each)) if file.is_file()), None)
    if found is None or _holds(folder, "*.jsonl"):  # of a run: a probe, say
        return None
    remedy = (
        "put the model's config.json beside them; those of another tool than Transformers, turn into its format first"
    )
    return f"it holds weights ({found}) without their shape: {remedy}"


def _holds(folder: Path, pattern: str) -> bool:
    return any(file.is_file() for file in folder.glob(pattern))
