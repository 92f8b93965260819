"""The checkpoints in a local folder: those of Trainer, of the recipes, of Lightning, or one model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from geomcallbacks.trace.checkpoints.loading import refusal
from geomcallbacks.trace.checkpoints.names import choose_names, log_spaced, parse_name

#: The number behind "step" where it is whole: Lightning puts metrics into names too, `train_loss_step=0.35-step=1000`.
_STEP_IN_FILE = re.compile(r"step[=_-]?(\d+)(?!\d|\.\d)")


@dataclass(frozen=True)
class LocalSource:
    """A checkpoint in a folder: where, and its step where that is known."""

    path: Path | None
    step: int | None
    problem: str | None = None


def folder_checkpoints(path: Path) -> dict[str, LocalSource]:
    """The checkpoints in a folder, by name: `checkpoint-N` or `step-N` in it or in its `checkpoints`, else Lightning's
    `*.ckpt` there, else the model that the folder itself is. A Lightning file may be given itself.

    Raises:
        ValueError: there are none.
    """
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ValueError(f"{path} is a file: give the folder of a model, or a Lightning checkpoint (*.ckpt)")
        return {path.stem: _lightning_source(path)}
    for folder in (path, path / "checkpoints"):
        named = {child.name: parse_name(child.name) for child in folder.glob("*") if child.is_dir()}
        steps = {name: LocalSource(folder / name, found.step) for name, found in named.items() if found is not None}
        if steps:
            return dict(sorted(steps.items(), key=lambda item: item[1].step or 0))
        files = [file for file in sorted(folder.glob("*.ckpt")) if file.is_file()]
        sources = {file.stem: _lightning_source(file) for file in files}
        taken = {source.step for name, source in sources.items() if not name.startswith("last")}
        if sources:  # Lightning's last.ckpt is a copy of one of the others, or an update of its own
            return {k: v for k, v in sources.items() if not (k.startswith("last") and v.step in taken)}
    if (path / "config.json").is_file():
        own = parse_name(path.resolve().name)
        return {path.resolve().name: LocalSource(path, own.step if own else None)}
    raise ValueError(
        f"{path} holds no checkpoints: none of checkpoint-N, step-N, checkpoints/step-N, *.ckpt, and no config.json of"
        " a model; give the folder that does"
    )


def choose_sources(sources: Mapping[str, LocalSource], revisions: str | Sequence[str] | None, model: str) -> list[str]:
    """The names of those that `revisions` asks for: see `choose_names`; None: all. Lightning's names hold no step that
    `choose_names` would see, so "log" goes by the steps themselves.

    Raises:
        ValueError: there is no such checkpoint.
    """
    wanted = "all" if revisions is None else revisions
    if wanted not in ("all", "log") or all(parse_name(name) for name in sources):
        return choose_names(list(sources), wanted, model)
    if wanted == "all":
        return list(sources)
    kept = set(log_spaced(source.step for source in sources.values() if source.step is not None))
    return [name for name, source in sources.items() if source.step is None or source.step in kept]


def _lightning_source(file: Path) -> LocalSource:
    named = _STEP_IN_FILE.findall(file.stem)
    if named:
        return LocalSource(file, int(named[-1]))
    import torch

    try:
        return LocalSource(file, int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"]))
    except Exception as error:
        return LocalSource(file, None, f"its global_step cannot be read ({refusal(error)})")
