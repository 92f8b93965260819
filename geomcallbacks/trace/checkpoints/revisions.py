"""Which of a model's checkpoints `--revisions` chooses: all, about eight a decade, or those that it names."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from geomcallbacks.trace.checkpoints.steps import parse_name, place_names

COMMIT = re.compile(r"[0-9a-f]{40}")


def choose_names(available: Sequence[str], revisions: str | Sequence[str], model: str) -> list[str]:
    """Return the names that `revisions` asks for.

    Args:
        available: all that there are.
        revisions: "all", "log" (see `log_spaced`), names with commas between them, a file with one a line (# begins a
            comment), or a list. "all" and "log" take those with a step, and of a stage's ingredients the first.
        model: for messages.

    Raises:
        ValueError: there is no such revision, or none at all.
    """
    if revisions in ("all", "log"):
        return _with_step(available, log=revisions == "log")
    wanted = _listed(revisions)
    if not wanted:
        raise ValueError(f"--revisions {revisions} names none: give all, log, names with commas, or a file of names")
    for name in wanted:
        if name not in available and not COMMIT.fullmatch(name):
            near = difflib.get_close_matches(name, available, n=4, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(list(available)[:6])}, …"
            raise ValueError(f"revision {name!r} is not one of the {len(available)} of {model}: {hint}")
    return list(dict.fromkeys(wanted))


def log_spaced(steps: Iterable[int], per_decade: int = 8) -> list[int]:
    """Return about so many steps of each tenfold, evenly on a logarithmic axis; the first and the last always."""
    steps = sorted(set(steps))
    nearest: dict[int, int] = {}
    for step in (step for step in steps if step > 0):
        place = per_decade * math.log10(step)
        cell = round(place)
        if cell not in nearest or abs(place - cell) < abs(per_decade * math.log10(nearest[cell]) - cell):
            nearest[cell] = step
    return sorted({*steps[:1], *steps[-1:], *nearest.values()})


def _with_step(available: Sequence[str], *, log: bool) -> list[str]:
    placed = place_names(available)
    if not placed:
        return ["main"] if "main" in available else list(available)
    first: dict[int, int] = {}  # ingredient of each stage
    kept: dict[str, int] = {}
    for name, (step, _) in placed.items():
        named = parse_name(name)
        if named is not None and named.ingredient == first.setdefault(named.stage, named.ingredient):
            kept[name] = step
    wanted = set(log_spaced(kept.values()) if log else kept.values())
    return [name for name, step in kept.items() if step in wanted]


def _listed(revisions: str | Sequence[str]) -> list[str]:
    if not isinstance(revisions, str):
        return list(revisions)
    if Path(revisions).is_file():
        lines = (line.partition("#")[0].strip() for line in Path(revisions).read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    return [name.strip() for name in revisions.split(",") if name.strip()]
