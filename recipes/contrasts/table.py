"""contrast.md: the numbers of a contrast as tables that read well in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from writing.markdown import table
from writing.page import fill

from contrasts.verdicts import mean

NAMES = {
    "sft": "SFT",
    "dpo": "DPO",
    "grpo": "GRPO",
    "dpo_base": "DPO from base",
    "grpo_base": "GRPO from base",
    "overtraining": "overtraining",
}

_CHANGES = ("change [95 % interval]", "change by seed")

Row = Mapping[str, Any]


def render(numbers: Row) -> str:
    """Return page.md.jinja for what `compare.compare` gives."""
    words = (size, listed, moved, changes, crossing, crossings)
    tables = (table_of_statements, table_of_shown, table_of_tries, table_of_crossed, table_of_checkpoints)
    functions = {function.__name__: function for function in (*words, *tables)}
    return fill(Path(__file__).with_name("page.md.jinja"), names=NAMES, **functions, **numbers)


def size(probe: Row) -> str:
    """Return the size of a probe, and the window of α on it."""
    return f"n = {probe['n']}, d = {probe['d']}, α over ranks {'–'.join(map(str, probe['alpha_window']))}"


def value(number: float | None) -> str:
    """Return a number with four digits, or a dash where there is none."""
    return "–" if number is None else f"{number:.4g}".replace("-", "−")


def listed(numbers: Sequence[float | None]) -> str:
    """Return numbers with commas between them."""
    return ", ".join(map(value, numbers))


def change(number: float | None) -> str:
    """Return a signed number with three digits, or a dash where there is none."""
    return "–" if number is None else f"{number:+.3g}".replace("-", "−")


def moved(row: Row) -> str:
    """Return start and end, means over the seeds that have both."""
    pairs = [pair for pair in zip(row["starts"], row["ends"], strict=True) if None not in pair]
    return " → ".join(value(mean([pair[side] for pair in pairs])) for side in (0, 1))


def with_interval(row: Row) -> str:
    """Return the mean change and its interval."""
    if row["mean"] is None:
        return "–"
    ends = "no interval" if row["low"] is None else f"{change(row['low'])}, {change(row['high'])}"
    return f"{change(row['mean'])} [{ends}]"


def changes(row: Row) -> tuple[str, str]:
    """Return the mean change with its interval, and the change of each seed."""
    return with_interval(row), ", ".join(map(change, row["changes"]))


def crossing(at: Row | None) -> str:
    """Return in words which curve leads first, and where it falls behind."""
    if at is None:
        return "not known"
    if at["after_leads_first"] is None:
        return "no difference"
    first, then = ("after", "before") if at["after_leads_first"] else ("before", "after")
    if at["k"] is None:
        return f"{first} leads, the curves do not cross"
    return f"{first} leads first, {then} from k = {at['k']}"


def crossings(by_seed: Sequence[Row | None], seeds: Sequence[int]) -> str:
    """Return the same for each seed."""
    words = [crossing(at) for at in by_seed]
    if len(set(words)) == 1:
        return f"in every seed: {words[0]}"
    return "; ".join(f"seed {seed}: {each}" for seed, each in zip(seeds, words, strict=True))


def table_of_statements(rows: Sequence[Row]) -> str:
    """Return the table of what is judged."""
    header = ("stage", "statement of the paper", "start → end", *_CHANGES, "verdict")
    return table(header, [(NAMES[r["stage"]], r["text"], moved(r), *changes(r), r["verdict"]) for r in rows])


def table_of_shown(rows: Sequence[Row]) -> str:
    """Return the table of what is not judged."""
    header = ("stage", "measured", "start → end", *_CHANGES)
    return table(header, [(NAMES[row["stage"]], row["what"], moved(row), *changes(row)) for row in rows])


def table_of_tries(curves: Row) -> str:
    """Return pass@k before and after, a row for each k."""
    means = ([value(mean(row[side])) for side in ("starts", "ends")] for row in curves["rows"])
    cells = zip(curves["k"], means, map(changes, curves["rows"]), strict=True)
    return table(("k", "before", "after", *_CHANGES), [(k, *both, *change) for k, both, change in cells])


def table_of_crossed(stages: Mapping[str, Sequence[Row]]) -> str:
    """Return the two by two of weights and rollouts, a row for each stage and metric."""
    sides = [f"{weights} W, {text} R" for weights in ("start", "end") for text in ("start", "end")]
    header = ("stage", "on rollouts", *sides, "by weights [95 % interval]", "by rollouts [95 % interval]")
    rows = []
    for stage, row in ((stage, row) for stage, found in stages.items() for row in found):
        effects = (with_interval(row[factor]) for factor in ("weights", "rollouts"))
        rows.append((NAMES[stage], row["metric"], *(value(mean(cell)) for cell in row["cells"].values()), *effects))
    return table(header, rows)


def table_of_checkpoints(overtraining: Mapping[str, Sequence[Row]]) -> str:
    """Return the points of the overtraining experiment, by seed and checkpoint."""
    header = ("seed", "update", "tokens", "base RankMe", "id loss after SFT", "ood loss after SFT")
    rows = [
        (seed, row["update"], f"{row['tokens']:,.0f}", *(value(row[key]) for key in ("rankme", "id", "ood")))
        for seed, points in overtraining.items()
        for row in points
    ]
    return table(header, rows)
