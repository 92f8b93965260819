"""The step at which a checkpoint stands: from the name of its branch or folder, or from a Lightning file.

Branches `step1000`, `stage1-step1000-tokens2B`, `stage2-ingredient1-step100-tokens1B`, `global_step1000`,
`iter_0001000`, `step-50K-105b`; folders `checkpoint-1000` (Trainer) and `step-001000` (the recipes); files
`epoch=0-step=1000.ckpt` (Lightning). A number of something else (`ckpt_000`, `epoch_0`, `1000`, `v1.0`) is no step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

_COUNT = r"\d+(?:\.\d+)?"
_NAME = re.compile(
    r"(?:(?:stage|phase)(?P<stage>\d+)[-_])?(?:ingredient(?P<ingredient>\d+)[-_])?"
    r"(?P<word>(?:global[-_]?)?step|checkpoint|iter(?:ation)?|ba)[-_=]?(?P<step>\d+)(?P<times>[KM]?)"
    rf"(?:[-_]tokens(?P<tokens>{_COUNT})(?P<unit>[KMBT]?)|[-_](?P<short>{_COUNT})(?P<short_unit>[KMBT])T?)?",
    re.IGNORECASE,
)
#: Tokens alone: `10B`, `tokens10B`, `10BT`, `10B-tokens`.
_TOKENS = re.compile(rf"(?:tokens?[-_]?)?({_COUNT})([MBT])T?(?:[-_]?tokens?)?", re.IGNORECASE)
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
    number = found["tokens"] or found["short"]
    tokens = None if number is None else _times(number, found["unit"] or found["short_unit"] or "")
    step = _times(found["step"], found["times"])
    return Named(int(found["stage"] or 0), int(found["ingredient"] or 0), step, tokens)


def tokens_alone(name: str) -> int | None:
    """Return the training tokens that are all a name tells; None where it tells none, or more."""
    found = _TOKENS.fullmatch(name)
    return None if found is None else _times(found[1], found[2])


def place_names(names: Iterable[str], tokens_per_update: int | None = None) -> dict[str, tuple[int, int | None]]:
    """Return (step, tokens) from the start of training, for each name that tells it, in the order of training.

    The numbers of a stage go on from those of the stages before where they lie above them (SmolLM3); else they start
    anew, and are added to the last of the stages before (OLMo 2). So give all names that a repository has. Where
    either may be, that stage and later ones are not placed. Ingredients of a stage are runs of their own from the same
    start: `step` and `tokens` of two may be equal. Tokens alone are placed by `tokens_per_update`.
    """
    names = list(names)
    found = sorted((named, name) for name in _steps_of(names) if (named := parse_name(name)) is not None)
    placed: dict[str, tuple[int, int | None]] = {}
    last = Named(0, 0, 0, 0)  # where the stages before end, from the start of training
    for stage in sorted({named.stage for named, _ in found}):
        here = [(named, name) for named, name in found if named.stage == stage]
        goes_on = _goes_on([named for named, _ in here], last) if placed else True
        if goes_on is None:
            break
        base_step, base_tokens = (0, 0) if goes_on else (last.step, last.tokens or 0)
        for named, name in here:
            tokens = None if named.tokens is None else base_tokens + named.tokens
            placed[name] = (base_step + named.step, tokens)
        steps, counts = zip(*placed.values(), strict=True)
        last = Named(stage, 0, max(steps), max(count or 0 for count in counts))
    if tokens_per_update is not None:
        alone = sorted((tokens, name) for name in names if (tokens := tokens_alone(name)) is not None)
        placed |= {name: (round(tokens / tokens_per_update), tokens) for tokens, name in alone}
    return placed


def lightning_step(file: Path, name: str | None = None) -> int:
    """Return the step of a Lightning checkpoint: the last in its name, else the `global_step` that it holds.

    Args:
        file: the checkpoint.
        name: with the folders that a slash in it has made; None: that of the file.

    Raises:
        Exception: of any kind, where there is none in the name and the file cannot be read.
    """
    if named := _STEP_IN_FILE.findall(name or file.stem):
        return int(named[-1])
    import torch

    return int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"])


def _steps_of(names: Sequence[str]) -> list[str]:
    """Return the names without `checkpoint_0`, `checkpoint_1`, …, by which accelerate counts what it has saved."""
    counts = {name: int(name[11:]) for name in names if re.fullmatch(r"checkpoint_(0|[1-9]\d*)", name)}
    counting = len(counts) > 1 and max(counts.values()) - min(counts.values()) == len(counts) - 1
    return [name for name in names if not (counting and name in counts)]


def _goes_on(here: Sequence[Named], last: Named) -> bool | None:
    """Whether a stage counts on from the stages before, rather than anew; None where its numbers leave that open."""
    steps = sorted({named.step for named in here})
    fewest = min((named.tokens for named in here if named.tokens is not None), default=last.tokens)
    if steps[0] < last.step or (fewest or 0) < (last.tokens or 0):
        return False
    # A stage that counts anew begins within the distance of its checkpoints.
    return True if len(steps) > 1 and steps[0] > max(b - a for a, b in pairwise(steps)) else None


def _times(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit.upper()]) if unit or "." in number else int(number)
