"""From the numbers of all stages to findings: the mapping of contrast.json, which is all that table and figure show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from text.arithmetic import ANSWERS

from contrasts.read import Contrast, StageNumbers
from contrasts.table import mean
from contrasts.verdicts import OVERTRAINING, Statement, crossing, judge, of_stage, shown, slope

MOST_TRIES = 256
HARDEST_PASS_1, LEAST_GAIN = 0.3, 0.3


def compare(found: Contrast, preset: str, real: Mapping[str, Mapping[int, StageNumbers]] | None) -> dict[str, Any]:
    """Returns every number and verdict, as JSON takes them. Lists go by seed."""
    seeds = found.seeds
    statements, others = [], []
    for name in sorted(found.stages, key=_order):
        statements += [_finding(statement, found.stages[name], seeds) for statement in of_stage(name)]
        others += [_finding(statement, found.stages[name], seeds) for statement in shown(name)]
    statements += [_slope_finding(found, statement) for statement in OVERTRAINING if found.overtraining]
    grpo = [name for name in ("grpo", "grpo_base") if name in found.stages]
    return {
        "header": _header(found, preset),
        "missing": found.missing,
        "notes": found.notes,
        "statements": statements,
        "shown": [row for row in others if any(change is not None for change in row["changes"])],
        "pass_at_k": {name: _pass_curves(found.stages[name], seeds) for name in grpo},
        "crossed": {name: _crossed(found.stages[name], name, seeds) for name in grpo},
        "overtraining": {str(seed): rows for seed, rows in found.overtraining.items()},
        "overtraining_end": _rise_at_end(found),
        "requirement": _requirement(found.stages.get("grpo_base", {}), seeds),
        "real": None if real is None else _real(real),
    }


def guessing(answers: int, tries: int) -> float:
    """Returns the chance that one of so many uniform guesses over so many answers is right."""
    return 1 - (1 - 1 / answers) ** tries


def clock_minutes(times: Sequence[Mapping[str, Any]]) -> float:
    """Returns for how many minutes at least one of the commands was running."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted((row["began"], row["began"] + 60 * row["minutes"]) for row in times):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total / 60


def _order(name: str) -> tuple[bool, int]:
    return name.endswith("_base"), ("sft", "dpo", "grpo").index(name.removesuffix("_base"))


def _header(found: Contrast, preset: str) -> dict[str, Any]:
    stages = [numbers for by_seed in found.stages.values() for numbers in by_seed.values()]
    unique = lambda key: sorted({str(stage.finished[key]) for stage in stages if key in stage.finished})
    return {
        "preset": preset,
        "seeds": found.seeds,
        "devices": unique("device"),
        "dates": unique("date"),
        "stage_minutes": sum(row["minutes"] for row in found.times),
        "clock_minutes": clock_minutes(found.times),
        "corpus": found.corpus,
        "probe": stages[0].probe,
    }


def _finding(statement: Statement, by_seed: Mapping[int, StageNumbers], seeds: Sequence[int]) -> dict[str, Any]:
    value = lambda seed, end: (by_seed[seed].end if end else by_seed[seed].start).get(statement.source)
    starts = [value(seed, False) if seed in by_seed else None for seed in seeds]
    ends = [value(seed, True) if seed in by_seed else None for seed in seeds]
    return _flat(judge(statement, starts, ends))


def _flat(finding: Any) -> dict[str, Any]:
    row = dataclasses.asdict(finding)
    return row.pop("statement") | row


def _over_seeds(found: Contrast, function: Callable[[list[dict[str, float]]], float | None]) -> list[float | None]:
    return [function(found.overtraining[seed]) if seed in found.overtraining else None for seed in found.seeds]


def _slope_finding(found: Contrast, statement: Statement) -> dict[str, Any]:
    loss, against = statement.source.split("/")
    key = "log10_tokens" if against == "tokens" else against
    slopes = _over_seeds(found, lambda rows: slope([row[key] for row in rows], [row[loss] for row in rows]))
    first, last = (_over_seeds(found, lambda rows, at=at: rows[at][loss]) for at in (0, -1))
    return _flat(judge(statement, first, last, slopes))


def _rise_at_end(found: Contrast) -> dict[str, Any] | None:
    if not found.overtraining:
        return None
    lowest = _over_seeds(found, lambda rows: min(row["ood"] for row in rows[:-1]))
    last = _over_seeds(found, lambda rows: rows[-1]["ood"])
    return _flat(judge(Statement("overtraining", "ood loss, lowest before the last → last", "ood"), lowest, last))


def _pass_curves(by_seed: Mapping[int, StageNumbers], seeds: Sequence[int]) -> dict[str, Any]:
    keys = {key for numbers in by_seed.values() for key in numbers.start if key.startswith("many/pass@")}
    tries = sorted(int(key.removeprefix("many/pass@")) for key in keys)
    rows = [_finding(Statement("grpo", f"pass@{k}", f"many/pass@{k}"), by_seed, seeds) for k in tries]
    by_seed_at = [
        _crossing_at(tries, *([row[which][index] for row in rows] for which in ("starts", "ends")))
        for index in range(len(seeds))
    ]
    means = [[mean(row[which]) for row in rows] for which in ("starts", "ends")]
    return {"k": tries, "rows": rows, "crossing": _crossing_at(tries, *means), "crossing_by_seed": by_seed_at}


def _crossing_at(tries: list[int], before: list[float | None], after: list[float | None]) -> dict[str, Any] | None:
    if not tries or None in before or None in after:
        return None
    at = crossing(before, after)
    leads = next((b > a for a, b in zip(before, after, strict=True) if a != b), None)
    return {"after_leads_first": leads, "k": None if at is None else tries[at]}


def _crossed(by_seed: Mapping[int, StageNumbers], stage: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for metric, name in {"rankme": "RankMe", "alpha_req": "α", "top1_share": "λ₁/Σλ"}.items():
        cell = lambda weights, text, metric=metric: [
            by_seed[seed].crossed.get((weights, text), {}).get(metric) if seed in by_seed else None for seed in seeds
        ]
        cells = {(weights, text): cell(weights, text) for weights in ("start", "end") for text in ("start", "end")}
        # The effect of one factor is the mean of its effects at both levels of the other.
        halves = {
            "weights": [_average(cells[when, "start"], cells[when, "end"]) for when in ("start", "end")],
            "rollouts": [_average(cells["start", when], cells["end", when]) for when in ("start", "end")],
        }
        effects = {
            factor: _flat(judge(Statement(stage, f"{name} by {factor}", f"crossed/{metric}"), *pair))
            for factor, pair in halves.items()
        }
        if effects["weights"]["mean"] is not None:
            named = {f"{weights} weights, {text} rollouts": values for (weights, text), values in cells.items()}
            found.append({"metric": name, "cells": named, **effects})
    return found


def _requirement(by_seed: Mapping[int, StageNumbers], seeds: Sequence[int]) -> dict[str, Any] | None:
    key = f"pass@{MOST_TRIES}"
    starts = [by_seed[seed].start if seed in by_seed else {} for seed in seeds]
    ones, many = ([start.get(f"many/pass@{k}") for start in starts] for k in (1, MOST_TRIES))
    if set(ones) == {None} or set(many) == {None}:
        return None
    answers = [len(ANSWERS[terms]) for terms in (2, 3)]  # half of the problems are of each kind
    guess = sum(guessing(count, MOST_TRIES) for count in answers) / len(answers)
    met = [
        None if one is None or most is None else one < HARDEST_PASS_1 and most >= guess + LEAST_GAIN
        for one, most in zip(ones, many, strict=True)
    ]
    return {"answers": answers, "guessing": guess, "least": guess + LEAST_GAIN, "pass@1": ones, key: many} | {
        "met": met
    }


def _real(stages: Mapping[str, Mapping[int, StageNumbers]]) -> dict[str, Any]:
    seeds = sorted({seed for by_seed in stages.values() for seed in by_seed})
    known = [dataclasses.replace(s, direction=0) for name in sorted(stages, key=_order) for s in of_stage(name)]
    first = next(iter(next(iter(stages.values())).values()))
    rows = [_finding(statement, stages[statement.stage], seeds) for statement in known]
    return {"seeds": seeds, "probe": first.probe, "finished": first.finished, "rows": rows}


def _average(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else (a + b) / 2 for a, b in zip(one, other, strict=True)]
