"""The checkpoints in a local folder: those of Trainer, of the recipes, of Lightning, or one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.loading import refusal
from geomcallbacks.trace.checkpoints.revisions import choose_names, log_spaced
from geomcallbacks.trace.checkpoints.steps import lightning_step, parse_name, place_names


def folder_checkpoints(path: Path) -> list[Checkpoint]:
    """Return the checkpoints in a folder, each at the step of its name.

    `checkpoint-N` or `step-N` in it or in its `checkpoints`, else Lightning's `*.ckpt` there, else the model that the
    folder itself is. A Lightning file may be given itself.

    Raises:
        ValueError: there are none.
    """
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ValueError(f"{path} is a file: give the folder of a model, or a Lightning checkpoint (*.ckpt)")
        return [_lightning(path.resolve().name, path)]
    model = path.resolve().name
    for folder in (path, path / "checkpoints"):
        if placed := place_names(child.name for child in folder.glob("*") if child.is_dir()):
            return [Checkpoint(model, name, step, tokens, folder / name) for name, (step, tokens) in placed.items()]
        files = [_lightning(model, file) for file in sorted(folder.glob("*.ckpt")) if file.is_file()]
        named = {file.step for file in files if not file.revision.startswith("last")}
        if files:  # Lightning's last.ckpt is a copy of one of the others, or an update of its own
            return [file for file in files if not (file.revision.startswith("last") and file.step in named)]
    if (path / "config.json").is_file():
        own = parse_name(model)
        return [Checkpoint(model, model, own.step if own else -1, None, path)]
    kinds = "none of checkpoint-N, step-N, checkpoints/step-N, *.ckpt, and no config.json of a model"
    raise ValueError(f"{path} holds no checkpoints: {kinds}; give the folder that does")


def choose_found(found: list[Checkpoint], revisions: str | Sequence[str] | None, model: str) -> list[Checkpoint]:
    """Return those that `revisions` asks for: None or "all", "log" by their steps, else by name as `choose_names` does.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if revisions is None or revisions == "all":
        return found
    if revisions == "log":
        kept = log_spaced(each.step for each in found if each.step >= 0)
        return [each for each in found if each.step < 0 or each.step in kept]
    by_name = {each.revision: each for each in found}
    return [by_name.get(name, Checkpoint(model, name)) for name in choose_names(list(by_name), revisions, model)]


def _lightning(model: str, file: Path) -> Checkpoint:
    try:
        return Checkpoint(model, file.stem, lightning_step(file), None, file)
    except Exception as error:
        problem = f"its global_step cannot be read ({refusal(error)})"
        return Checkpoint(model, file.stem, source=file, problem=problem)
