"""What Li et al. 2025 (arXiv 2509.23024) state about post-training, and how a statement is judged over seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from geomcallbacks.statistics import t_interval

#: Its direction is that of the paper's text alone.
OOD_IN_PAPER = "the paper's text; its figure shows a fall of 5 % and a rise of 0.6-0.8 at the end"


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


#: Geometry is judged on the general-text probe alone, as the paper measures it.
STATEMENTS = (
    Statement("sft", "RankMe", "geometry/general/rankme", +1, "RankMe rises"),
    Statement("sft", "α", "geometry/general/alpha_req", -1, "α falls"),
    Statement("sft", "id loss", "behaviour/id/loss", -1, "better in distribution: loss falls"),
    Statement("sft", "ood loss", "behaviour/ood/loss", +1, "worse out of distribution: loss rises"),
    Statement("dpo", "RankMe", "geometry/general/rankme", +1, "RankMe rises"),
    Statement("dpo", "α", "geometry/general/alpha_req", -1, "α falls"),
    Statement("dpo", "accuracy", "behaviour/preference/accuracy", +1, "better in distribution: preferences"),
    Statement("dpo", "ood loss", "behaviour/ood/loss", +1, "worse out of distribution: loss rises"),
    Statement("grpo", "RankMe", "geometry/general/rankme", -1, "RankMe falls"),
    Statement("grpo", "α", "geometry/general/alpha_req", +1, "α rises"),
    Statement("grpo", "reward", "many/reward", +1, "reward rises"),
    Statement("grpo", "distinct answers", "many/distinct_answers", -1, "fewer distinct answers"),
    Statement("grpo", "pass@256", "many/pass@256", -1, "fewer problems solved with 256 tries"),
)

#: Slopes over the checkpoints of one pretraining run; the source is "<loss>/<what it is fitted against>".
OVERTRAINING = (
    Statement("overtraining", "id loss, tokens", "id/tokens", -1, "in-distribution loss falls per tenfold of tokens"),
    Statement("overtraining", "ood loss, tokens", "ood/tokens", +1, "out-of-distribution loss rises per tenfold"),
    Statement("overtraining", "id loss, RankMe", "id/rankme", -1, "in-distribution loss falls with base RankMe"),
    Statement("overtraining", "ood loss, RankMe", "ood/rankme", +1, "out-of-distribution loss rises with base RankMe"),
)

_GEOMETRY = {"rankme": "RankMe", "alpha_req": "α", "top1_share": "λ₁/Σλ", "top10_share": "Σ₁₀λ/Σλ"}
_PROBES = {"general": "general text", "task": "task probe", "rollouts": "rollouts probe"}
_SHOWN = {
    f"geometry/{probe}/{key}": f"{_GEOMETRY[key]}, {_PROBES[probe]}" for probe in _PROBES for key in _GEOMETRY
} | {
    "behaviour/general/loss": "loss on general text",
    "behaviour/id/loss": "in-distribution loss",
    "behaviour/ood/loss": "out-of-distribution loss",
    "behaviour/preference/margin": "margin on held-out pairs",
    "behaviour/preference/accuracy_per_token": "accuracy by mean log-probability",
    "behaviour/preference/reward_accuracy": "accuracy of the implicit reward",
    "behaviour/rollouts_ood/reward": "reward on longer problems",
    "many/answer_entropy": "entropy of answers",
    "many/distinct_2": "distinct-2",
    "many/self_bleu": "self-BLEU",
    "many/no_answer": "share without an answer",
    "many/length": "tokens of a rollout",
}


def shown(stage: str) -> list[Statement]:
    """Return what is shown of a stage and not judged."""
    judged = {statement.source for statement in of_stage(stage)}
    return [Statement(stage, name, source) for source, name in _SHOWN.items() if source not in judged]


def of_stage(stage: str) -> list[Statement]:
    """Return the statements about a stage; those about `sft` for `sft_base` too, and so on."""
    kind = stage.removesuffix("_base")
    return [dataclasses.replace(known, stage=stage) for known in STATEMENTS if known.stage == kind]


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


def crossing(before: Sequence[float], after: Sequence[float]) -> int | None:
    """Return the first index at which the curve that led no longer does, but trails; None where it never trails."""
    leads = [math.copysign(1, b - a) if a != b else 0 for a, b in zip(before, after, strict=True)]
    first = next((lead for lead in leads if lead), None)
    return next((index for index, lead in enumerate(leads) if first and lead == -first), None)
