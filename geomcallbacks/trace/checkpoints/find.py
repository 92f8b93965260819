"""What the MODEL… of `geomcallbacks trace` name: the checkpoints of one curve, in the order of their steps."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.folders import choose_found, folder_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.revisions import choose_names, no_place
from geomcallbacks.trace.checkpoints.steps import place_names

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Its branch names do not say: 1,024 rows of 2,048 (Biderman et al. 2023).
PYTHIA_TOKENS_PER_UPDATE = 1024 * 2048


def find_checkpoints(
    models: Sequence[str],
    hub: Hub,
    revisions: str | Sequence[str] | None = None,
    tokens_per_update: int | None = None,
) -> list[Checkpoint]:
    """Return the checkpoints of one curve, in the order of their steps.

    Of one model, each stands at its own step. Several models are one curve in the order given, and each checkpoint
    stands at its place in it: 0, 1, 2, … So does the single revision of a model whose name holds no step.

    Args:
        models: hub names, `name@revision`, local folders.
        hub: lists the revisions of hub names.
        revisions: see `choose_names`; None: `main` of a hub name, everything in a folder.
        tokens_per_update: training tokens of one update, where names do not give them.

    Raises:
        ValueError: a model is neither a folder nor a hub name, an unknown revision, an empty folder, names with and
            without a step in one curve, two checkpoints of one step.
    """
    if not models:
        raise ValueError("no MODEL was given: give a hub name, or a folder of checkpoints")
    if tokens_per_update is not None and tokens_per_update < 1:
        raise ValueError(f"--tokens-per-update {tokens_per_update}: give a positive number of training tokens")
    if len(models) == 1:
        return _at_steps(models[0], _of_model(models[0], hub, revisions, tokens_per_update), tokens_per_update)
    several = [(model, _of_model(model, hub, revisions, tokens_per_update)) for model in models]
    return _at_places([(model, each) for model, found in several for each in found])


def _of_model(
    model: str, hub: Hub, revisions: str | Sequence[str] | None, tokens_per_update: int | None
) -> list[Checkpoint]:
    """Return those checkpoints of a model that were asked for, each at the step of its name."""
    path = Path(model).expanduser()
    if path.exists():
        return choose_found(folder_checkpoints(path, tokens_per_update), revisions, model)
    name, _, own = model.partition("@")
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{model} is no folder, and no hub name such as EleutherAI/pythia-160m: check the path")
    if own and revisions is not None:
        raise ValueError(f"{model} names its revision itself: give that, or --revisions, not both")
    available = hub.revisions(name)
    chosen = choose_names(available, own or revisions or "main", name, place_names(available, tokens_per_update))
    return [Checkpoint(name, revision, *place) for revision, place in chosen.items()]


def _at_steps(given: str, found: list[Checkpoint], tokens_per_update: int | None) -> list[Checkpoint]:
    """Return the checkpoints of one model, each at its own step."""
    curve = []
    for place, each in enumerate(found):
        pythia = PYTHIA_TOKENS_PER_UPDATE if each.model.startswith("EleutherAI/pythia-") else None
        per_update, step, tokens = tokens_per_update or pythia, each.step, each.tokens
        if each.problem is not None:
            step = -1 - place  # where none stands that can be measured
        elif step < 0 and len(found) > 1:
            others = [other.revision for other in found if other.step < 0 and other.problem is None]
            text = f"{each} has no step in its name and cannot stand on one curve with others: leave it out, or say it"
            raise ValueError(f"{text}. {no_place(others, given)}")
        elif step < 0:
            step = 0
        elif tokens is None and per_update is not None:
            tokens = step * per_update
        curve.append(replace(each, step=step, tokens=tokens))
    curve.sort(key=lambda each: each.step)
    for before, after in itertools.pairwise(curve):
        if before.step == after.step:
            raise ValueError(f"{before} and {after} both stand at step {after.step}: trace them as two curves")
    return curve


def _at_places(several: list[tuple[str, Checkpoint]]) -> list[Checkpoint]:
    """Return the checkpoints of several models, each with its model as given, at their places in that order."""
    count = Counter((each.model, each.revision) for _, each in several)
    curve: list[Checkpoint] = []
    for given, each in several:
        model = given if each.source is not None and count[each.model, each.revision] > 1 else each.model
        curve.append(replace(each, model=model, step=len(curve), tokens=None))
    return curve
