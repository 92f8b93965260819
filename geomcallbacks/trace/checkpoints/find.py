"""What the MODEL… of `geomcallbacks trace` name: the checkpoints of one curve, in the order of their steps."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geomcallbacks.trace.checkpoints.folders import Found, choose_found, folder_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.revisions import choose_names
from geomcallbacks.trace.checkpoints.steps import place_names

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Its branch names do not say: 1,024 rows of 2,048 (Biderman et al. 2023).
PYTHIA_TOKENS_PER_UPDATE = 1024 * 2048


@dataclass(frozen=True)
class Checkpoint:
    """One point of a curve.

    Attributes:
        model: hub name, or name of the local folder; as it was given, where two of a curve would be called the same.
        revision: branch, tag or commit on the hub, or the checkpoint's name in its folder.
        step: where it stands on the curve.
        tokens: training tokens seen, where known.
        source: folder or file of the weights; None: they are on the hub.
        problem: why it cannot be read, where its listing has already shown that.
    """

    model: str
    revision: str
    step: int
    tokens: int | None = None
    source: Path | None = None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}"


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
        return _at_steps(*_of_model(models[0], hub, revisions), tokens_per_update)
    return _at_places([(model, *_of_model(model, hub, revisions)) for model in models])


def _of_model(model: str, hub: Hub, revisions: str | Sequence[str] | None) -> tuple[str, list[Found]]:
    """Return the name of a model, and those of its checkpoints that were asked for."""
    path = Path(model).expanduser()
    if path.exists():
        return path.resolve().name, choose_found(folder_checkpoints(path), revisions, model)
    name, _, own = model.partition("@")
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{model} is no folder, and no hub name such as EleutherAI/pythia-160m: check the path")
    if own and revisions is not None:
        raise ValueError(f"{model} names its revision itself: give that, or --revisions, not both")
    available = hub.revisions(name)
    placed = place_names(available)
    chosen = choose_names(available, own or revisions or "main", name)
    return name, [Found(revision, *placed.get(revision, (None, None))) for revision in chosen]


def _at_steps(name: str, found: list[Found], tokens_per_update: int | None) -> list[Checkpoint]:
    """Return the checkpoints of one model, each at its own step."""
    per_update = tokens_per_update or (PYTHIA_TOKENS_PER_UPDATE if name.startswith("EleutherAI/pythia-") else None)
    curve = []
    for place, each in enumerate(found):
        step, tokens = each.step, each.tokens
        if step is None and len(found) > 1 and each.problem is None:
            raise ValueError(
                f"{name}: {each.revision!r} has no step in its name and cannot stand on one curve with others: leave it"
                " out, or give every revision as a MODEL of its own (name@revision), which counts them 0, 1, 2, …"
            )
        if step is None:
            step = 0 if each.problem is None else -1 - place  # where none stands that can be measured
        elif tokens is None and per_update is not None:
            tokens = step * per_update
        curve.append(Checkpoint(name, each.revision, step, tokens, each.source, each.problem))
    curve.sort(key=lambda each: each.step)
    for before, after in itertools.pairwise(each for each in curve if each.problem is None):
        if before.step == after.step:
            raise ValueError(
                f"{before} and {after} both stand at step {after.step}: trace them as two curves, to two files"
            )
    return curve


def _at_places(several: list[tuple[str, str, list[Found]]]) -> list[Checkpoint]:
    """Return the checkpoints of several models, (as given, name, checkpoints) each, at their places in that order."""
    count = Counter((name, each.revision) for _, name, found in several for each in found)
    curve: list[Checkpoint] = []
    for given, name, found in several:
        for each in found:
            model = given if each.source is not None and count[name, each.revision] > 1 else name
            curve.append(Checkpoint(model, each.revision, len(curve), None, each.source, each.problem))
    return curve
