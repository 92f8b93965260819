"""Which of a model's checkpoints `--revisions` chooses: all, about eight a decade, or those that it names."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from geomcallbacks.trace.checkpoints.steps import parse_name, tokens_alone

COMMIT = re.compile(r"[0-9a-f]{40}")
#: Step and training tokens, where the name tells them.
Place = tuple[int, int | None]
NO_PLACE: Place = (-1, None)


def choose_names(
    available: Sequence[str], revisions: str | Sequence[str], model: str, placed: Mapping[str, Place]
) -> dict[str, Place]:
    """Return the names that `revisions` asks for, each with its place, `NO_PLACE` where the name does not tell it.

    Args:
        available: all that there are.
        revisions: "all", "log" (see `log_spaced`), names with commas between them, a file with one a line (# begins a
            comment), or a list. "all" and "log" take those with a place, and of a stage's ingredients the first.
            `NAME=STEP` says where a name stands that does not tell it.
        model: for messages.
        placed: places of those whose names tell them.

    Raises:
        ValueError: there is no such revision, or none at all; "all" or "log" where no name tells a step.
    """
    if revisions in ("all", "log"):
        return _with_step(available, str(revisions), model, placed)
    wanted = _listed(revisions)
    if not wanted:
        raise ValueError(f"--revisions {revisions} names none: give all, log, names with commas, or a file of names")
    chosen: dict[str, Place] = {}
    for word in wanted:
        name, equals, step = word.rpartition("=")
        known = word in available or COMMIT.fullmatch(word) is not None
        if equals and not known and (name in available or COMMIT.fullmatch(name)):
            if not (step.isascii() and step.isdigit()):
                raise ValueError(f"--revisions {word}: {step!r} is no number of updates: give {name}=STEP")
            chosen[name] = (int(step), placed.get(name, NO_PLACE)[1])
        elif known:
            chosen.setdefault(word, placed.get(word, NO_PLACE))
        else:
            near = difflib.get_close_matches(word, available, n=4, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(list(available)[:6])}, …"
            raise ValueError(f"revision {word!r} is not one of the {len(available)} of {model}: {hint}")
    return chosen


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


def no_place(names: Sequence[str], model: str) -> str:
    """Say that names do not tell where they stand, and what to give."""
    one = f"{model}/{names[0]}" if Path(model).expanduser().is_dir() else f"{model}@{names[0]}"
    some, more = ", ".join(names[:4]), ", …" if len(names) > 4 else ""
    given = ",".join(f"{name}=STEP" for name in names[:2]) + (",…" if len(names) > 2 else "")
    tokens = any(tokens_alone(name) is not None for name in names)
    by_tokens = "--tokens-per-update N, by which the tokens in names are divided, or " if tokens else ""
    return (
        f"{some}{more} of {model}: the names do not tell after how many updates of the run they were saved. Give"
        f" {by_tokens}--revisions {given} (or a file with one a line), or each as a MODEL of its own ({one}),"
        " which counts them 0, 1, 2, …"
    )


def left_out(names: Sequence[str], model: str) -> None:
    """Warn that names are left out, for they do not tell where they stand."""
    warnings.warn(f"left out: {no_place(names, model)}", stacklevel=5)


def _with_step(available: Sequence[str], revisions: str, model: str, placed: Mapping[str, Place]) -> dict[str, Place]:
    others = [name for name in available if name not in placed and name not in ("main", "master")]
    if not placed and others:
        raise ValueError(f"--revisions {revisions}: {no_place(others, model)}")
    if not placed:
        warnings.warn(f"{model} has no revision but {', '.join(available)}: that alone is measured", stacklevel=4)
        return dict.fromkeys(available, NO_PLACE)
    if others:
        left_out(others, model)
    first: dict[int, int] = {}  # ingredient of each stage
    kept: dict[str, Place] = {}
    for name, place in placed.items():
        named = parse_name(name)
        if named is None or named.ingredient == first.setdefault(named.stage, named.ingredient):
            kept[name] = place
    steps = [step for step, _ in kept.values()]
    wanted = set(log_spaced(steps) if revisions == "log" else steps)
    return {name: place for name, place in kept.items() if place[0] in wanted}


def _listed(revisions: str | Sequence[str]) -> list[str]:
    if not isinstance(revisions, str):
        return list(revisions)
    file = Path(revisions).expanduser()
    if file.is_file():
        lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    return [name.strip() for name in revisions.split(",") if name.strip()]
