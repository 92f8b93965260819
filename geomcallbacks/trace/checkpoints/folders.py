"""The checkpoints in a local folder: those of Trainer, of the recipes, of Lightning, or one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.foreign import is_model, is_run, no_checkpoints, problem_of
from geomcallbacks.trace.checkpoints.loading import refusal
from geomcallbacks.trace.checkpoints.revisions import choose_names, left_out, log_spaced, no_place
from geomcallbacks.trace.checkpoints.steps import lightning_step, parse_name, place_names


def folder_checkpoints(path: Path, tokens_per_update: int | None = None) -> list[Checkpoint]:
    """Return the checkpoints in a folder, each at the step of its name; below 0 where that does not tell it.

    `checkpoint-N` or `step-N` in it or in its `checkpoints`, else Lightning's `*.ckpt` there, else the model that the
    folder itself is. A Lightning file or a GGUF file may be given itself.

    Raises:
        ValueError: there are none.
    """
    model = path.resolve().name
    if path.is_file():
        if path.suffix == ".ckpt":
            return [_lightning(model, path, path.parent)]
        if path.suffix == ".gguf":
            return [Checkpoint(model, path.stem, source=path)]
        remedy = "give the folder of a model, or a Lightning checkpoint (*.ckpt) or GGUF file (*.gguf)"
        raise ValueError(f"{path} is a file: {remedy}")
    for folder in (path, path / "checkpoints"):
        if (folder / "zero_to_fp32.py").is_file():  # DeepSpeed's own folders in it are no checkpoints of ours
            break
        children = sorted(child for child in folder.glob("*") if child.is_dir() and child.suffix != ".ckpt")
        placed = place_names([child.name for child in children], tokens_per_update)
        # A folder called "best" or "final" is one of the others once more; one with a number is a step we cannot read.
        named = [child.name for child in children if child.name not in placed and any(map(str.isdigit, child.name))]
        found = {name: (-1, None) for name in named if is_model(folder / name)} | placed
        if found and not (placed == {} and folder == path and is_model(path)):
            return [
                Checkpoint(model, name, step, tokens, folder / name, problem_of(folder / name))
                for name, (step, tokens) in sorted(found.items(), key=lambda item: item[1][0])
            ]
        if lightning := _lightning_files(model, folder):
            return lightning
    if is_model(path):
        own = parse_name(model)
        return [Checkpoint(model, model, own.step if own else -1, None, path, problem_of(path))]
    if files := sorted(path.glob("*.gguf")):
        return [Checkpoint(model, file.stem, source=file) for file in files]
    raise ValueError(no_checkpoints(path))


def choose_found(found: list[Checkpoint], revisions: str | Sequence[str] | None, model: str) -> list[Checkpoint]:
    """Return those that `revisions` asks for: None or "all", "log" by their steps, else by name as `choose_names` does.

    Raises:
        ValueError: there is no such checkpoint, or of several none tells its step.
    """
    by_name = {each.revision: each for each in found}
    if revisions is not None and revisions not in ("all", "log"):
        placed = {each.revision: (each.step, each.tokens) for each in found if each.step >= 0}
        chosen = choose_names(list(by_name), revisions, model, placed)
        return [
            replace(by_name.get(name, Checkpoint(model, name)), step=step, tokens=tokens)
            for name, (step, tokens) in chosen.items()
        ]
    kept = [each for each in found if each.step >= 0 or each.problem is not None]
    others = [each.revision for each in found if each not in kept]
    if len(found) == 1:
        return found
    if not kept:
        raise ValueError(no_place(others, model))
    if others:
        left_out(others, model)
    if revisions == "log":
        steps = log_spaced(each.step for each in kept if each.step >= 0)
        return [each for each in kept if each.step < 0 or each.step in steps]
    return kept


def _lightning_files(model: str, folder: Path) -> list[Checkpoint]:
    """Return Lightning's checkpoints in a folder.

    ``ModelCheckpoint(filename="{step}-{geometry/rankme:.2f}")`` makes folders `step=5-geometry`: those are looked into.
    """
    found: list[Checkpoint] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop(0)
        for child in sorted(here.glob("*")):
            if child.suffix == ".ckpt" and not child.with_name(f"whole-{child.name}").exists():  # joined by the user
                found.append(_lightning(model, child, folder))
            elif child.is_dir() and any(part in child.name for part in ("=", "geometry")) and not is_run(child):
                waiting.append(child)
    named = {each.step for each in found if each.problem is None and not each.revision.startswith("last")}
    # Lightning's last.ckpt is a copy of one of the others, or an update of its own.
    return [each for each in found if not (each.revision.startswith("last") and each.step in named)]


def _lightning(model: str, file: Path, folder: Path) -> Checkpoint:
    name = file.relative_to(folder).with_suffix("").as_posix()
    problem = problem_of(file) if file.is_dir() else None
    try:
        if problem is None and file.is_dir():
            problem = "it is a folder, not a file of Lightning's: give the file that it was turned into"
        return Checkpoint(model, name, lightning_step(file, name), None, file, problem)
    except Exception as error:
        problem = problem or f"its global_step cannot be read ({refusal(error)})"
        return Checkpoint(model, name, source=file, problem=problem)
