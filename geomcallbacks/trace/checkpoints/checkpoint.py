"""One point of a curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """One point of a curve.

    Attributes:
        model: hub name, or name of the local folder; as it was given, where two of a curve would be called the same.
        revision: branch, tag or commit on the hub, or the checkpoint's name in its folder.
        step: where it stands on the curve; below 0 where its name does not tell (until `find_checkpoints` places it),
            or where it cannot be read.
        tokens: training tokens seen, where known.
        source: folder or file of the weights; None: they are on the hub.
        problem: why it cannot be read, where its listing has already shown that.
    """

    model: str
    revision: str
    step: int = -1
    tokens: int | None = None
    source: Path | None = None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}"
