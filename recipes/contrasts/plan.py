"""Which stages a contrast has for a seed, where each stands, and when it is finished."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from contrasts.settings import ContrastSettings
from geomcallbacks import read_records


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of one seed.

    Attributes:
        seed: the seed.
        root: folder of the seed.
        name: name of the stage: its folder in `root`.
        recipe: name of the script, without its suffix.
        start: stage or checkpoint in `root` that it starts from; None for the base's last weights.
    """

    seed: int
    root: Path
    name: str
    recipe: str
    start: str | None = None

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.root / self.name

    def is_finished(self) -> bool:
        """Return whether it has been run to its end."""
        return (self.folder / ("geometry.png" if self.recipe == "pretrain" else "finished.json")).is_file()

    @property
    def log(self) -> Path:
        """Where its output goes: beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.log")


def base_step(output_dir: str | Path, seed: int) -> Step:
    """Return the pretraining of a seed."""
    return Step(seed, Path(output_dir) / f"seed-{seed}", "base", "pretrain")


def chain_steps(root: Path, seed: int) -> list[Step]:
    """Return SFT, DPO and GRPO, each from the one before it."""
    starts = {"sft": None, "dpo": "sft", "grpo": "dpo"}
    return [Step(seed, root, name, name, start) for name, start in starts.items()]


def branches(base: Step, settings: ContrastSettings) -> list[list[Step]]:
    """Return what starts from a base, in rows of steps that need each other.

    SFT from its checkpoints is known once the base is finished.
    """
    rows = [chain_steps(base.root, base.seed)]
    if settings.from_base:
        rows += [[Step(base.seed, base.root, f"{recipe}_base", recipe)] for recipe in ("dpo", "grpo")]
    if settings.overtraining and base.is_finished():
        *early, _ = overtraining_steps(base, settings.overtraining).values()
        rows += [[step] for step in early]
    return rows


def overtraining_steps(base: Step, count: int) -> dict[int, Step]:
    """Return SFT from `count` checkpoints of a finished base, by update; the last of them is the chain's own SFT.

    Raises:
        ValueError: the base has too few checkpoints.
    """
    steps = {}
    for update in chosen_updates(base.folder, count):
        name = f"step-{update:06d}"
        steps[update] = Step(base.seed, base.root, f"overtraining/{name}", "sft", f"base/checkpoints/{name}")
    return steps | {update: chain_steps(base.root, base.seed)[0]}


def chosen_updates(base: Path, count: int) -> list[int]:
    """Return the updates of a finished base that SFT starts from: about 1/2^(count-1), …, 1/4, 1/2 and all of the run.

    Each is the nearest on a log scale that was measured and saved. Where the checkpoints have been removed since, the
    measured updates stand for them, so that what was run before can still be read.

    Raises:
        ValueError: they are not `count` different ones that end with the run's last update.
    """
    measured = sorted({record["step"] for record in read_records(base / "geometry.jsonl")} - {0})
    saved = {int(folder.name.removeprefix("step-")) for folder in base.glob("checkpoints/step-*")}
    updates = [update for update in measured if update in saved] if saved else measured
    if measured and updates:
        nearest = lambda wanted: min(updates, key=lambda update: abs(math.log(update / wanted)))
        chosen = sorted({nearest(measured[-1] / 2**halvings) for halvings in range(count)})
        if len(chosen) == count and chosen[-1] == measured[-1]:
            return chosen
    raise ValueError(
        f"overtraining={count}: {base} has checkpoints at the updates {updates}, too few for so many; pretrain it with "
        f"--checkpoints measured, or give --overtraining 0"
    )
