"""What Li et al. 2025 (arXiv 2509.23024) state about post-training, and how a statement is judged over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_QUANTILES = (
    "12.706205 4.302653 3.182446 2.776445 2.570582 2.446912 2.364624 2.306004 2.262157 2.228139 "
    "2.200985 2.178813 2.160369 2.144787 2.131450 2.119905 2.109816 2.100922 2.093024 2.085963 "
    "2.079614 2.073873 2.068658 2.063899 2.059539 2.055529 2.051831 2.048407 2.045230 2.042272"
)
#: 97.5 % quantiles of Student's t for 1, 2, … 30 degrees of freedom: torch has none, and scipy is no dependency.
T_975 = tuple(map(float, _QUANTILES.split()))
MOST_SEEDS = len(T_975) + 1

#: Its direction is that of the paper's text alone.
OOD_IN_PAPER = "the paper's text; its figure shows a fall of 5 % and a rise of 0.6-0.8 at the end"


@dataclasses.dataclass(frozen=True)
class Statement:
    """A number of a stage, and in which direction the paper says that it moves.

    Attributes:
        stage: Folder of the stage; ``dpo_base`` and ``grpo_base`` start straight from the base.
        what: Name of the number.
        source: Where it stands: ``geometry/<probe>/<metric>`` of geometry.jsonl, ``behaviour/<key>`` of
            behaviour.jsonl, ``many/<key>`` of rollouts.json.
        direction: +1 or -1; 0 for a number that is shown and not judged.
        text: The statement.
    """

    stage: str
    what: str
    source: str
    direction: int = 0
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the seeds say about a statement. The lists go by seed; None where the number is missing.

    Attributes:
        statement: What was measured.
        starts, ends: The number at the stage's first and last update.
        changes: End minus start, or a slope.
        mean: Mean of the changes that are there.
        low, high: 95 % interval of the mean; None for fewer than two seeds.
        verdict: "reproduced", "opposite" or "inconclusive"; None where nothing is judged.
    """

    statement: Statement
    starts: list[float | None]
    ends: list[float | None]
    changes: list[float | None]
    mean: float | None
    low: float | None
    high: float | None
    verdict: str | None


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
_BEHAVIOUR = {
    "general/loss": "loss on general text",
    "id/loss": "in-distribution loss",
    "ood/loss": "out-of-distribution loss",
    "preference/margin": "margin on held-out pairs",
    "preference/accuracy_per_token": "accuracy by mean log-probability",
    "preference/reward_accuracy": "accuracy of the implicit reward",
    "rollouts_ood/reward": "reward on longer problems",
}
_MANY = {
    "answer_entropy": "entropy of answers",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "no_answer": "share without an answer",
    "length": "tokens of a rollout",
}


def shown(stage: str) -> list[Statement]:
    """Returns what is shown of a stage and not judged."""
    judged = {statement.source for statement in of_stage(stage)}
    names = {f"geometry/general/{key}": f"{name}, general text" for key, name in _GEOMETRY.items()}
    for probe in ("task", "rollouts"):
        names |= {f"geometry/{probe}/{key}": f"{name}, {probe} probe" for key, name in _GEOMETRY.items()}
    names |= {f"behaviour/{key}": name for key, name in _BEHAVIOUR.items()}
    names |= {f"many/{key}": name for key, name in _MANY.items()}
    return [Statement(stage, name, source) for source, name in names.items() if source not in judged]


def of_stage(stage: str) -> list[Statement]:
    """Returns the statements about a stage; those about ``sft`` for ``sft_base`` too, and so on."""
    kind = stage.removesuffix("_base")
    return [dataclasses.replace(known, stage=stage) for known in STATEMENTS if known.stage == kind]


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Returns mean, low and high of the 95 % Student t interval of paired differences.

    Raises:
        ValueError: There are fewer than two differences, or more than the table of quantiles covers.
    """
    count = len(differences)
    if not 2 <= count <= MOST_SEEDS:
        raise ValueError(f"differences has {count} values: an interval takes 2 to {MOST_SEEDS} seeds")
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    half = T_975[count - 2] * math.sqrt(variance / count)
    return mean, mean - half, mean + half


def verdict(direction: int, low: float | None, high: float | None) -> str:
    """Returns "reproduced" where the interval excludes zero in the stated direction, "opposite" in the other."""
    if direction not in (-1, +1):
        raise ValueError(f"direction={direction}: give +1 or -1; what has no direction is not judged")
    if low is None or high is None or low <= 0 <= high:
        return "inconclusive"
    return "reproduced" if (low > 0) == (direction > 0) else "opposite"


def judge(
    statement: Statement,
    starts: Sequence[float | None],
    ends: Sequence[float | None],
    changes: Sequence[float | None] | None = None,
) -> Finding:
    """Returns the finding of numbers that go by seed; ``changes`` replaces end minus start."""
    if changes is None:
        pairs = zip(starts, ends, strict=True)
        changes = [None if start is None or end is None else end - start for start, end in pairs]
    known = [change for change in changes if change is not None]
    mean = low = high = None
    if len(known) > 1:
        mean, low, high = interval(known)
    elif known:
        mean = known[0]
    judged = verdict(statement.direction, low, high) if statement.direction else None
    return Finding(statement, list(starts), list(ends), list(changes), mean, low, high, judged)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Returns the least-squares slope of y on x; None where x does not vary."""
    x_mean, y_mean = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    if spread == 0:
        return None
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread


def crossing(before: Sequence[float], after: Sequence[float]) -> int | None:
    """Returns the first index at which the curve that led no longer does, but trails; None where it never trails."""
    leads = [math.copysign(1, b - a) if a != b else 0 for a, b in zip(before, after, strict=True)]
    first = next((lead for lead in leads if lead), 0)
    return next((index for index, lead in enumerate(leads) if first and lead == -first), None)
