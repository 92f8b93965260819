"""Names of checkpoints: the step and the tokens that they hold, and which of them `--revisions` chooses.

Branches `step1000`, `stage1-step1000-tokens2B`, `stage2-ingredient1-step100-tokens1B` (OLMo 2 counts both anew in each
stage: here they go on from the last branch of the stage before), folders `checkpoint-1000` (Trainer) and
`step-001000` (the recipes).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(
    r"(?:stage(?P<stage>\d+)-)?(?:ingredient(?P<ingredient>\d+)-)?(?:step|checkpoint)[-_]?(?P<step>\d+)"
    r"(?:-tokens(?P<tokens>\d+(?:\.\d+)?)(?P<unit>[KMBT]?))?"
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, order=True)
class Named:
    """What the name of a checkpoint says; ordered as training goes."""

    stage: int
    ingredient: int
    step: int
    tokens: int | None = field(default=None, compare=False)


def parse_name(name: str) -> Named | None:
    """Stage, step and tokens from the name of a branch or a folder; None where it holds no step."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    tokens = None if found["tokens"] is None else round(float(found["tokens"]) * _UNITS[found["unit"]])
    return Named(int(found["stage"] or 0), int(found["ingredient"] or 0), int(found["step"]), tokens)


def place_names(names: Iterable[str]) -> dict[str, tuple[int, int | None]]:
    """(step, tokens) from the start of training, for each name that holds a step, in the order of training.

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


def log_spaced(steps: Iterable[int], per_decade: int = 8) -> list[int]:
    """About so many of the steps in each tenfold, evenly on a logarithmic axis; the first and the last always."""
    steps = sorted(set(steps))
    nearest: dict[int, int] = {}
    for step in (step for step in steps if step > 0):
        cell = round(per_decade * math.log10(step))
        best = nearest.get(cell)
        if best is None or abs(math.log10(step) - cell / per_decade) < abs(math.log10(best) - cell / per_decade):
            nearest[cell] = step
    return sorted({*steps[:1], *steps[-1:], *nearest.values()})


def choose_names(available: Sequence[str], revisions: str | Sequence[str], model: str) -> list[str]:
    """The names that `revisions` asks for.

    Args:
        available: all that there are.
        revisions: "all", "log" (see `log_spaced`), names with commas between them, a file with one a line (# begins a
            comment), or a list. "all" and "log" take those with a step, and of a stage's ingredients the first.
        model: for messages.

    Raises:
        ValueError: there is no such revision, or none at all.
    """
    if revisions in ("all", "log"):
        return _curve(available, revisions == "log")
    wanted = _listed(revisions)
    if not wanted:
        raise ValueError(f"--revisions {revisions} names none: give all, log, names with commas, or a file of names")
    for name in wanted:
        if name not in available and not _COMMIT.fullmatch(name):
            near = difflib.get_close_matches(name, available, n=4, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(list(available)[:6])}, …"
            raise ValueError(f"revision {name!r} is not one of the {len(available)} of {model}: {hint}")
    return list(dict.fromkeys(wanted))


def _curve(available: Sequence[str], log: bool) -> list[str]:
    placed = place_names(available)
    names = {name: named for name in available if (named := parse_name(name)) is not None}
    if not names:
        return ["main"] if "main" in available else list(available)
    first: Mapping[int, int] = {
        stage: min(named.ingredient for named in names.values() if named.stage == stage)
        for stage in {named.stage for named in names.values()}
    }
    kept = [name for name in placed if names[name].ingredient == first[names[name].stage]]
    wanted = set(log_spaced(placed[name][0] for name in kept)) if log else None
    return [name for name in kept if wanted is None or placed[name][0] in wanted]


def _listed(revisions: str | Sequence[str]) -> list[str]:
    if not isinstance(revisions, str):
        return list(revisions)
    if Path(revisions).is_file():
        lines = (line.partition("#")[0].strip() for line in Path(revisions).read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    return [name.strip() for name in revisions.split(",") if name.strip()]
