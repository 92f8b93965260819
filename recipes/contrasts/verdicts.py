"""What Li et al. 2025 (arXiv 2509.23024) state about post-training, and how a statement is judged over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml

from geomcallbacks.statistics import t_interval

_PAPER = yaml.safe_load(Path(__file__).with_name("statements.yaml").read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Statement:
    """A number of a stage, and in which direction the paper says that it moves.

    Attributes:
        stage: folder of the stage; `dpo_base` and `grpo_base` start straight from the base.
        what: name of the number.
        source: where it stands: `geometry/<probe>/<metric>` of geometry.jsonl, `behaviour/<key>` of behaviour.jsonl,
            `many/<key>` of rollouts.json.
        direction: +1 or -1; 0 for a number that is shown and not judged.
        text: the statement.
    """

    stage: str
    what: str
    source: str
    direction: int = 0
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Finding(Statement):
    """What the seeds say about a statement. The lists go by seed; None where the number is missing.

    Attributes:
        starts, ends: the number at the stage's first and last update.
        changes: end minus start, or a slope.
        mean: mean of the changes that are there.
        low, high: 95 % interval of the mean, by Student's t; None for fewer than two seeds.
        verdict: "reproduced" where the interval excludes zero in the stated direction, "opposite" where it does in the
            other, else "inconclusive"; None where nothing is judged.
    """

    starts: Sequence[float | None] = ()
    ends: Sequence[float | None] = ()
    changes: Sequence[float | None] = ()
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str | None = None


def of_stage(stage: str) -> list[Statement]:
    """Return the statements about a stage; those about `sft` for `sft_base` too, and so on."""
    return [Statement(stage, **row) for row in _PAPER["judged"][stage.removesuffix("_base")]]


def shown(stage: str) -> list[Statement]:
    """Return what is shown of a stage and not judged."""
    judged = {statement.source for statement in of_stage(stage)}
    return [Statement(stage, name, source) for source, name in _PAPER["shown"].items() if source not in judged]


def judge(
    statement: Statement,
    starts: Sequence[float | None],
    ends: Sequence[float | None],
    changes: Sequence[float | None] | None = None,
) -> Finding:
    """Return the finding of numbers that go by seed; `changes` replaces end minus start."""
    if changes is None:
        pairs = zip(starts, ends, strict=True)
        changes = [None if start is None or end is None else end - start for start, end in pairs]
    known = [change for change in changes if change is not None]
    low, high = t_interval(known) if len(known) > 1 else (None, None)
    verdict = None
    if statement.direction:
        verdict = "inconclusive"
        if low is not None and high is not None and not low <= 0 <= high:
            verdict = "reproduced" if (low > 0) == (statement.direction > 0) else "opposite"
    return Finding(
        **vars(statement),
        starts=starts,
        ends=ends,
        changes=changes,
        mean=mean(known),
        low=low,
        high=high,
        verdict=verdict,
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers that are there."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def slope(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the least-squares slope of y on x; None where x does not vary."""
    return None if len(set(xs)) < 2 else statistics.linear_regression(xs, ys).slope


def crossing(before: Sequence[float], after: Sequence[float]) -> tuple[bool | None, int | None]:
    """Return whether `after` leads first, and the first index at which the one that led trails.

    None for the first where the curves never differ, for the second where they never cross.
    """
    ahead = [None if b == a else a > b for b, a in zip(before, after, strict=True)]
    first = next((lead for lead in ahead if lead is not None), None)
    return first, next((index for index, lead in enumerate(ahead) if lead is (not first)), None)
