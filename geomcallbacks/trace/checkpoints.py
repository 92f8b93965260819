"""What the MODEL… and `--revisions` of `geomcallbacks trace` name: the checkpoints of one curve, in order.

Steps and tokens come from names: branches `step1000`, `stage1-step1000-tokens2B`, `stage2-ingredient1-step100-tokens1B`
(OLMo 2 counts both anew in each stage: here they go on from the last branch of the stage before), folders
`checkpoint-1000` (Trainer), `checkpoints/step-001000` (the recipes), and Lightning's `*.ckpt`.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

_NAME = re.compile(
    r"(?:stage(?P<stage>\d+)-)?(?:ingredient(?P<ingredient>\d+)-)?(?:step|checkpoint)[-_]?(?P<step>\d+)"
    r"(?:-tokens(?P<tokens>\d+(?:\.\d+)?)(?P<unit>[KMBT]?))?"
)
_STEP_IN_FILE = re.compile(r"step[=_-]?(\d+)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Training tokens of one update where branch names do not say: 1,024 rows of 2,048 (Biderman et al. 2023).
TOKENS_PER_UPDATE = {"EleutherAI/pythia-": 1024 * 2048}


@dataclass(frozen=True)
class Checkpoint:
    """One point of a curve.

    Attributes:
        model: hub name, or name of the local folder.
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


@dataclass(frozen=True, order=True)
class Named:
    """What the name of a checkpoint says; ordered as training goes."""

    stage: int
    ingredient: int
    step: int
    tokens: int | None = None


class Repositories(Protocol):
    """What lists the revisions of a model that is not a local folder."""

    def revisions(self, model: str) -> list[str]:
        """Names of branches and tags."""


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
            without a step in one curve, two checkpoints of one step.
    """
    if not models:
        raise ValueError("no MODEL was given: give a hub name, or a folder of checkpoints")
    if len(models) > 1:
        found = [each for model in models for each in _of_model(model, hub, revisions, tokens_per_update, False)]
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
        chosen = choose_names(list(sources), revisions or "all", model) if len(sources) > 1 else list(sources)
        steps = {revision: (source.step, None) for revision, source in sources.items()}
    else:
        name, _, own = model.partition("@")
        if not _HUB_NAME.fullmatch(name):
            raise ValueError(f"{model} is no folder, and no hub name such as EleutherAI/pythia-160m: check the path")
        available = hub.revisions(name)
        chosen = choose_names(available, own or revisions or "main", name)
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
        files = sorted(folder.glob("*.ckpt"))
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


def _lightning_source(file: Path) -> LocalSource:
    named = _STEP_IN_FILE.search(file.stem)
    if named:
        return LocalSource(file, int(named[1]))
    import torch

    try:
        return LocalSource(file, int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"]))
    except Exception as error:
        return LocalSource(file, None, f"its global_step cannot be read ({type(error).__name__}: {error})")


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


def _tokens(model: str, step: int, tokens_per_update: int | None) -> int | None:
    known = next((tokens for start, tokens in TOKENS_PER_UPDATE.items() if model.startswith(start)), None)
    per_update = tokens_per_update or known
    return None if per_update is None else step * per_update
