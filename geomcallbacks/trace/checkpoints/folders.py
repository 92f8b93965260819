"""The checkpoints in a local folder: those of Trainer, of the recipes, of Lightning, or one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geomcallbacks.trace.checkpoints.loading import refusal
from geomcallbacks.trace.checkpoints.revisions import choose_names, log_spaced
from geomcallbacks.trace.checkpoints.steps import lightning_step, parse_name, place_names


@dataclass(frozen=True)
class Found:
    """A checkpoint before it has its place on a curve.

    Attributes:
        revision: its name in its folder or on the hub.
        step, tokens: from the start of training, where known.
        source: folder or file of the weights; None: they are on the hub.
        problem: why it cannot be read, where its listing has already shown that.
    """

    revision: str
    step: int | None = None
    tokens: int | None = None
    source: Path | None = None
    problem: str | None = None


def folder_checkpoints(path: Path) -> list[Found]:
    """Return the checkpoints in a folder.

    `checkpoint-N` or `step-N` in it or in its `checkpoints`, else Lightning's `*.ckpt` there, else the model that the
    folder itself is. A Lightning file may be given itself.

    Raises:
        ValueError: there are none.
    """
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ValueError(f"{path} is a file: give the folder of a model, or a Lightning checkpoint (*.ckpt)")
        return [_lightning(path)]
    for folder in (path, path / "checkpoints"):
        if placed := place_names(child.name for child in folder.glob("*") if child.is_dir()):
            return [Found(name, step, tokens, folder / name) for name, (step, tokens) in placed.items()]
        files = [_lightning(file) for file in sorted(folder.glob("*.ckpt")) if file.is_file()]
        named = {file.step for file in files if not file.revision.startswith("last")}
        if files:  # Lightning's last.ckpt is a copy of one of the others, or an update of its own
            return [file for file in files if not (file.revision.startswith("last") and file.step in named)]
    if (path / "config.json").is_file():
        name = path.resolve().name
        own = parse_name(name)
        return [Found(name, own.step if own else None, None, path)]
    raise ValueError(
        f"{path} holds no checkpoints: none of checkpoint-N, step-N, checkpoints/step-N, *.ckpt, and no config.json of"
        " a model; give the folder that does"
    )


def choose_found(found: list[Found], revisions: str | Sequence[str] | None, model: str) -> list[Found]:
    """Return those that `revisions` asks for: None or "all", "log" by their steps, else by name as `choose_names` does.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if revisions is None or revisions == "all":
        return found
    if revisions == "log":
        kept = log_spaced(each.step for each in found if each.step is not None)
        return [each for each in found if each.step is None or each.step in kept]
    by_name = {each.revision: each for each in found}
    return [by_name.get(name, Found(name)) for name in choose_names(list(by_name), revisions, model)]


def _lightning(file: Path) -> Found:
    try:
        return Found(file.stem, lightning_step(file), None, file)
    except Exception as error:
        return Found(file.stem, None, None, file, f"its global_step cannot be read ({refusal(error)})")
