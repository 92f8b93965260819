"""What the MODEL… of `geomcallbacks trace` name: the checkpoints of one curve, in order of the steps in their names."""

from __future__ import annotations

import itertools
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from geomcallbacks.trace.checkpoints.folders import LocalSource, choose_sources, folder_checkpoints
from geomcallbacks.trace.checkpoints.names import choose_names, parse_name, place_names

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Training tokens of one update where branch names do not say: 1,024 rows of 2,048 (Biderman et al. 2023).
TOKENS_PER_UPDATE = {"EleutherAI/pythia-": 1024 * 2048}


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


class Repositories(Protocol):
    """What lists the revisions of a model that is not a local folder."""

    def revisions(self, model: str) -> list[str]:
        """Names of branches and tags."""

    def knows_all(self, model: str) -> bool:
        """Whether the names are all that there are, and not those of a cache alone."""


def find_checkpoints(
    models: Sequence[str],
    hub: Repositories,
    revisions: str | Sequence[str] | None = None,
    tokens_per_update: int | None = None,
) -> list[Checkpoint]:
    """The checkpoints of one curve, in the order of their steps.

    Of one model, each stands at its own step. Several models are one curve in the order given, and each checkpoint
    stands at its place in it: 0, 1, 2, … So does the single revision of a model whose name holds no step.

    Args:
        models: hub names, `name@revision`, local folders.
        hub: lists the revisions of hub names.
        revisions: see `choose_names`; None: `main` of a hub name, everything in a folder.
        tokens_per_update: training tokens of one update, where names do not give them.

    Raises:
        ValueError: a model is neither a folder nor a hub name, an unknown revision, an empty folder, names with and
            without a step in one curve, two checkpoints of one step, a stage whose start is not known.
    """
    if not models:
        raise ValueError("no MODEL was given: give a hub name, or a folder of checkpoints")
    if tokens_per_update is not None and tokens_per_update < 1:
        raise ValueError(f"--tokens-per-update {tokens_per_update}: give a positive number of training tokens")
    if len(models) > 1:
        several = [(model, _of_model(model, hub, revisions, tokens_per_update, False)) for model in models]
        count = Counter(str(each) for _, curve in several for each in curve)
        found = [
            each if each.source is None or count[str(each)] == 1 else replace(each, model=model)
            for model, curve in several
            for each in curve
        ]
        return [replace(each, step=place, tokens=None) for place, each in enumerate(found)]
    found = sorted(_of_model(models[0], hub, revisions, tokens_per_update, True), key=lambda each: each.step)
    for before, after in itertools.pairwise(each for each in found if each.problem is None):
        if before.step == after.step:
            raise ValueError(
                f"{before} and {after} both stand at step {after.step}: trace them as two curves, to two files"
            )
    return found


def _of_model(
    model: str, hub: Repositories, revisions: str | Sequence[str] | None, tokens_per_update: int | None, alone: bool
) -> list[Checkpoint]:
    path = Path(model).expanduser()
    steps: dict[str, tuple[int | None, int | None]]
    sources: dict[str, LocalSource] = {}
    if path.exists():
        name, sources = path.resolve().name, folder_checkpoints(path)
        chosen = choose_sources(sources, revisions, model)
        steps = {revision: (source.step, None) for revision, source in sources.items()}
    else:
        name, _, own = model.partition("@")
        if not _HUB_NAME.fullmatch(name):
            raise ValueError(no_model(model))
        if own and revisions is not None:
            raise ValueError(f"{model} names its revision itself: give that, or --revisions, not both")
        available = hub.revisions(name)
        chosen = choose_names(available, own or revisions or "main", name)
        if alone and not hub.knows_all(name):
            _check_stages(name, chosen, available)
        steps = {**place_names(available)}
    found = []
    for place, revision in enumerate(chosen):
        step, tokens = steps.get(revision, (None, None))
        source = sources.get(revision, LocalSource(None, step))
        if step is None and alone and len(chosen) > 1 and source.problem is None:
            raise ValueError(
                f"{name}: {revision!r} has no step in its name and cannot stand on one curve with others: leave it out,"
                " or give every revision as a MODEL of its own (name@revision), which counts them 0, 1, 2, …"
            )
        if tokens is None and step is not None:
            tokens = _tokens(name, step, tokens_per_update)
        unknown = place if source.problem is None else -1 - place  # clashes with no checkpoint that can be measured
        at = unknown if step is None else step
        found.append(Checkpoint(name, revision, at, tokens, source.path, source.problem))
    return found


def no_model(model: str) -> str:
    """What to say of a name that can be none."""
    return f"{model} is no folder, and no hub name such as EleutherAI/pythia-160m: check the path"


def _check_stages(model: str, chosen: Sequence[str], available: Sequence[str]) -> None:
    """Steps of a later stage count on from the end of the one before, which a cache need not hold."""
    known = {named.stage for name in available if (named := parse_name(name)) is not None}
    for name in chosen:
        named = parse_name(name)
        if named is None or named.stage < 2:
            continue
        if named.stage - 1 not in known:
            raise ValueError(
                f"{model}@{name} goes on from the last step of stage {named.stage - 1}, of which the cache has no"
                " revision: trace it with a network, or as one of several models, which are counted 0, 1, 2, …"
            )
        warnings.warn(
            f"{model}: without the hub, stage {named.stage} is taken to go on from the last revision of stage"
            f" {named.stage - 1} in the cache",
            stacklevel=4,
        )
        return


def _tokens(model: str, step: int, tokens_per_update: int | None) -> int | None:
    known = next((tokens for start, tokens in TOKENS_PER_UPDATE.items() if model.startswith(start)), None)
    per_update = tokens_per_update or known
    return None if per_update is None else step * per_update
