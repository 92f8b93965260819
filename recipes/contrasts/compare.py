"""From the numbers of all stages to findings: the mapping of contrast.json, which is all that table and figure show."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

from text.arithmetic import ANSWERS

from contrasts.read import Contrast, Stage
from contrasts.settings import ContrastSettings
from contrasts.verdicts import Statement, crossing, judge, mean, of_stage, shown, slope

MOST_TRIES = 256
HARDEST_PASS_1, LEAST_GAIN = 0.3, 0.3

#: Numbers by seed, None where there is none.
Values = list[float | None]
#: Overtraining of one seed: a row for each checkpoint.
Curve = list[dict[str, Any]]


def compare(found: Contrast, settings: ContrastSettings, real: Mapping[str, Stage] | None) -> dict[str, Any]:
    """Return every number and verdict, as JSON takes them. Lists go by seed."""
    stages = found.stages
    grpo = {name: stage for name, stage in stages.items() if name in ("grpo", "grpo_base")}
    statements = [_finding(statement, stage) for name, stage in stages.items() for statement in of_stage(name)]
    others = [_finding(statement, stage) for name, stage in stages.items() for statement in shown(name)]
    curves = [found.overtraining.get(seed) for seed in settings.seeds] if found.overtraining else []
    return {
        "header": _header(found, settings),
        "missing": found.missing,
        "notes": found.notes,
        "statements": statements + [_slope_finding(known, curves) for known in of_stage("overtraining") if curves],
        "shown": [row for row in others if row["mean"] is not None],
        "pass_at_k": {name: _pass_curves(stage) for name, stage in grpo.items()},
        "crossed": {name: _crossed(name, stage) for name, stage in grpo.items()},
        "overtraining": {str(seed): rows for seed, rows in found.overtraining.items()},
        "overtraining_end": _rise_at_end(curves) if curves else None,
        "requirement": _requirement(stages.get("grpo_base", {})),
        "real": None if real is None else _real(real),
    }


def guessing(answers: int, tries: int) -> float:
    """Return the chance that one of so many uniform guesses over so many answers is right."""
    return 1 - (1 - 1 / answers) ** tries


def clock_minutes(times: Sequence[Mapping[str, Any]]) -> float:
    """Return for how many minutes at least one of the commands was running."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted((row["began"], row["began"] + 60 * row["minutes"]) for row in times):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total / 60


def _header(found: Contrast, settings: ContrastSettings) -> dict[str, Any]:
    stages = [numbers for stage in found.stages.values() for numbers in stage.values() if numbers is not None]
    unique = lambda key: sorted({str(stage.finished[key]) for stage in stages if key in stage.finished})
    return {
        "preset": settings.preset,
        "seeds": settings.seeds,
        "devices": unique("device"),
        "dates": unique("date"),
        "stage_minutes": sum(row["minutes"] for row in found.times),
        "clock_minutes": clock_minutes(found.times),
        "corpus": found.corpus,
        "probe": stages[0].probe,
    }


def _values(stage: Stage, side: Literal["start", "end"], source: str) -> Values:
    return [None if numbers is None else getattr(numbers, side).get(source) for numbers in stage.values()]


def _judged(statement: Statement, *numbers: Values) -> dict[str, Any]:
    return dataclasses.asdict(judge(statement, *numbers))


def _finding(statement: Statement, stage: Stage) -> dict[str, Any]:
    return _judged(statement, *(_values(stage, side, statement.source) for side in ("start", "end")))


def _slope_finding(statement: Statement, curves: Sequence[Curve | None]) -> dict[str, Any]:
    loss, against = statement.source.split("/")
    x = "log10_tokens" if against == "tokens" else against
    slopes = [rows and slope([row[x] for row in rows], [row[loss] for row in rows]) for rows in curves]
    return _judged(statement, *([rows and rows[at][loss] for rows in curves] for at in (0, -1)), slopes)


def _rise_at_end(curves: Sequence[Curve | None]) -> dict[str, Any]:
    lowest = [rows and min(row["ood"] for row in rows[:-1]) for rows in curves]
    statement = Statement("overtraining", "ood loss, lowest before the last → last", "ood")
    return _judged(statement, lowest, [rows and rows[-1]["ood"] for rows in curves])


def _pass_curves(stage: Stage) -> dict[str, Any]:
    sources = {source for numbers in stage.values() if numbers for source in numbers.start}
    tries = sorted(int(source.removeprefix("many/pass@")) for source in sources if source.startswith("many/pass@"))
    rows = [_finding(Statement("grpo", f"pass@{k}", f"many/pass@{k}"), stage) for k in tries]
    each = [_crossing_at(tries, rows, itemgetter(index)) for index in range(len(stage))]
    return {"k": tries, "rows": rows, "crossing": _crossing_at(tries, rows, mean), "crossing_by_seed": each}


def _crossing_at(
    tries: Sequence[int], rows: Sequence[Mapping[str, Any]], pick: Callable[[Values], float | None]
) -> dict[str, Any] | None:
    """Return which of the curves before and after leads first, and from which k on it trails."""
    before, after = ([pick(row[side]) for row in rows] for side in ("starts", "ends"))
    if not rows or None in before or None in after:
        return None
    leads, at = crossing(before, after)
    return {"after_leads_first": leads, "k": None if at is None else tries[at]}


def _crossed(name: str, stage: Stage) -> list[dict[str, Any]]:
    found, sides = [], ("start", "end")
    for metric, shown_as in {"rankme": "RankMe", "alpha_req": "α", "top1_share": "λ₁/Σλ"}.items():
        cells = {(w, text): _values(stage, w, f"crossed/{text}_rollouts/{metric}") for w in sides for text in sides}
        # The effect of one factor is the mean of its effects at both levels of the other.
        halves = {
            "weights": [_average(cells[side, "start"], cells[side, "end"]) for side in sides],
            "rollouts": [_average(cells["start", side], cells["end", side]) for side in sides],
        }
        effects = {
            factor: _judged(Statement(name, f"{shown_as} by {factor}", f"crossed/{metric}"), *pair)
            for factor, pair in halves.items()
        }
        if effects["weights"]["mean"] is not None:
            named = {f"{weights} weights, {text} rollouts": values for (weights, text), values in cells.items()}
            found.append({"metric": shown_as, "cells": named, **effects})
    return found


def _requirement(stage: Stage) -> dict[str, Any] | None:
    ones, many = (_values(stage, "start", f"many/pass@{k}") for k in (1, MOST_TRIES))
    if mean(ones) is None or mean(many) is None:
        return None
    answers = [len(ANSWERS[terms]) for terms in (2, 3)]  # half of the problems are of each kind
    guess = statistics.fmean(guessing(count, MOST_TRIES) for count in answers)
    least = guess + LEAST_GAIN
    met = [
        None if one is None or most is None else one < HARDEST_PASS_1 and most >= least
        for one, most in zip(ones, many, strict=True)
    ]
    found = {"answers": answers, "guessing": guess, "least": least, "pass@1": ones, f"pass@{MOST_TRIES}": many}
    return found | {"met": met}


def _real(stages: Mapping[str, Stage]) -> dict[str, Any]:
    stage = next(iter(stages.values()))
    first = next(numbers for numbers in stage.values() if numbers is not None)
    known = [dataclasses.replace(statement, direction=0) for name in stages for statement in of_stage(name)]
    rows = [_finding(statement, stages[statement.stage]) for statement in known]
    return {"seeds": list(stage), "probe": first.probe, "finished": first.finished, "rows": rows}


def _average(one: Values, other: Values) -> Values:
    return [None if a is None or b is None else (a + b) / 2 for a, b in zip(one, other, strict=True)]
