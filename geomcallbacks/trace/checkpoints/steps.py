"""The step at which a checkpoint stands: from the name of its branch or folder, or from a Lightning file.

Branches `step1000`, `stage1-step1000-tokens2B`, `stage2-ingredient1-step100-tokens1B` (OLMo 2 counts both anew in each
stage: here they go on from the last branch of the stage before), folders `checkpoint-1000` (Trainer) and
`step-001000` (the recipes), files `epoch=0-step=1000.ckpt` (Lightning).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(
    r"(?:stage(?P<stage>\d+)-)?(?:ingredient(?P<ingredient>\d+)-)?(?:step|checkpoint)[-_]?(?P<step>\d+)"
    r"(?:-tokens(?P<tokens>\d+(?:\.\d+)?)(?P<unit>[KMBT]?))?"
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
#: The number behind "step" where it is whole: Lightning puts metrics into names too, `train_loss_step=0.35-step=1000`.
_STEP_IN_FILE = re.compile(r"step[=_-]?(\d+)(?!\d|\.\d)")


@dataclass(frozen=True, order=True)
class Named:
    """What the name of a checkpoint says; ordered as training goes."""

    stage: int
    ingredient: int
    step: int
    tokens: int | None = field(default=None, compare=False)


def parse_name(name: str) -> Named | None:
    """Return stage, step and tokens from the name of a branch or a folder; None where it holds no step."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    tokens = None if found["tokens"] is None else round(float(found["tokens"]) * _UNITS[found["unit"]])
    return Named(int(found["stage"] or 0), int(found["ingredient"] or 0), int(found["step"]), tokens)


def place_names(names: Iterable[str]) -> dict[str, tuple[int, int | None]]:
    """Return (step, tokens) from the start of training, for each name that holds a step, in the order of training.

    A stage goes on from the last step and tokens of the stages before it, so give all names that a repository has.
    Ingredients of a stage are runs of their own from the same start: `step` and `tokens` of two may be equal.
    """
    found = sorted((named, name) for name in names if (named := parse_name(name)) is not None)
    placed: dict[str, tuple[int, int | None]] = {}
    base_step, base_tokens = 0, 0
    for stage in sorted({named.stage for named, _ in found}):
        here = [(named, name) for named, name in found if named.stage == stage]
        for named, name in here:
            tokens = None if named.tokens is None else base_tokens + named.tokens
            placed[name] = (base_step + named.step, tokens)
        base_step += max(named.step for named, _ in here)
        base_tokens += max(named.tokens or 0 for named, _ in here)
    return placed


def lightning_step(file: Path) -> int:
    """Return the step of a Lightning checkpoint: the last in its name, else the `global_step` that it holds.

    Raises:
        Exception: of any kind, where there is none in the name and the file cannot be read.
    """
    if named := _STEP_IN_FILE.findall(file.stem):
        return int(named[-1])
    import torch

    return int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"])
