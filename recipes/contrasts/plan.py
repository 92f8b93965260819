"""Which stages a contrast has for a seed, where each stands, and when it is finished."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from geomcallbacks import read_records

#: Stages by folder: the recipe, and the folder that it starts from (None: the base).
CHAIN = {"sft": ("sft", None), "dpo": ("dpo", "sft"), "grpo": ("grpo", "dpo")}
FROM_BASE = {"dpo_base": ("dpo", None), "grpo_base": ("grpo", None)}


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of one seed.

    Attributes:
        seed: The seed.
        name: Name of the stage, as it is printed.
        recipe: Name of the script, without its suffix.
        folder: Where it writes.
        start: Stage or checkpoint that it starts from; None for the base's last weights.
    """

    seed: int
    name: str
    recipe: str
    folder: Path
    start: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether it has been run to its end."""
        return (self.folder / ("geometry.png" if self.recipe == "pretrain" else "finished.json")).is_file()

    @property
    def log(self) -> Path:
        """Where its output goes: beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.log")


def seed_folder(output_dir: str | Path, seed: int) -> Path:
    """Returns the folder of a seed."""
    return Path(output_dir) / f"seed-{seed}"


def base_step(root: Path, seed: int) -> Step:
    """Returns the pretraining of a seed."""
    return Step(seed, "base", "pretrain", root / "base")


def chain_steps(root: Path, seed: int) -> list[Step]:
    """Returns SFT, DPO and GRPO, each from the one before it."""
    return _steps(root, seed, CHAIN)


def from_base_steps(root: Path, seed: int) -> list[Step]:
    """Returns DPO and GRPO straight from the base."""
    return _steps(root, seed, FROM_BASE)


def _steps(root: Path, seed: int, stages: dict[str, tuple[str, str | None]]) -> list[Step]:
    return [
        Step(seed, name, recipe, root / name, None if start is None else root / start)
        for name, (recipe, start) in stages.items()
    ]


def overtraining_steps(root: Path, seed: int, count: int) -> dict[int, Step]:
    """Returns SFT from ``count`` checkpoints of the base, by update; the last of them is the chain's own SFT.

    Raises:
        ValueError: The base has too few checkpoints.
    """
    *early, last = chosen_updates(root / "base", count)
    found = {}
    for update in early:
        name = f"step-{update:06d}"
        checkpoint = root / "base" / "checkpoints" / name
        found[update] = Step(seed, f"overtraining/{name}", "sft", root / "overtraining" / name, checkpoint)
    return found | {last: Step(seed, "sft", "sft", root / "sft")}


def chosen_updates(base: Path, count: int) -> list[int]:
    """Returns the updates of a finished base that SFT starts from: about 1/2^(count-1), …, 1/4, 1/2 and all of the run.

    Each is the nearest on a log scale that was measured and saved. Where the checkpoints were removed since, those
    that were measured stand for them, so that what was run before can still be read.

    Raises:
        ValueError: They are not ``count`` different ones that end with the run's last update.
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
