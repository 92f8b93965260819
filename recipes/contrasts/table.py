"""contrast.md: the numbers of a contrast as tables that read well in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contrasts.verdicts import OOD_IN_PAPER

NAMES = {
    "sft": "SFT",
    "dpo": "DPO",
    "grpo": "GRPO",
    "dpo_base": "DPO from base",
    "grpo_base": "GRPO from base",
    "overtraining": "overtraining",
}

_CHANGE = "change [95 % interval]"


def render(numbers: Mapping[str, Any]) -> str:
    """Returns the page for what `contrast_compare.compare` gives."""
    parts = [_heading(numbers), _statements(numbers["statements"])]
    if numbers["missing"]:
        parts.append("**Not finished**, so not in the tables: " + "; ".join(numbers["missing"]) + ".")
    if numbers["notes"]:
        parts.append("**Mind:**\n" + "\n".join(f"- {note}" for note in numbers["notes"]))
    parts += ["## Shown, not judged", _shown(numbers["shown"])]
    for stage, curves in numbers["pass_at_k"].items():
        if curves["rows"]:
            parts += [f"## pass@k before and after {NAMES[stage]}", _pass_at_k(curves, numbers["header"]["seeds"])]
    if numbers["requirement"]:
        parts.append(_requirement(numbers["requirement"]))
    if any(numbers["crossed"].values()):
        parts += ["## Weights and text apart", _crossed(numbers["crossed"])]
    if numbers["overtraining"]:
        parts += ["## Overtraining: SFT from checkpoints of one pretraining run", _overtraining(numbers)]
    if numbers["real"]:
        parts += ["## Already instruction-tuned; not judged", _real(numbers["real"])]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are aligned in plain text too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def value(number: float | None) -> str:
    """Returns a number with four digits, or a dash where there is none."""
    return "–" if number is None else f"{number:.4g}".replace("-", "−")


def change(number: float | None) -> str:
    """Returns a signed number with three digits, or a dash where there is none."""
    return "–" if number is None else f"{number:+.3g}".replace("-", "−")


def mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the numbers that are there."""
    known = [number for number in values if number is not None]
    return sum(known) / len(known) if known else None


def with_interval(row: Mapping[str, Any]) -> str:
    """Returns the mean change and its interval."""
    if row["low"] is None:
        return f"{change(row['mean'])} [no interval]" if row["mean"] is not None else "–"
    return f"{change(row['mean'])} [{change(row['low'])}, {change(row['high'])}]"


def moved(row: Mapping[str, Any]) -> str:
    """Returns start and end, means over the seeds that have both."""
    pairs = [pair for pair in zip(row["starts"], row["ends"], strict=True) if None not in pair]
    return " → ".join(value(mean([pair[side] for pair in pairs])) for side in (0, 1))


def by_seed(row: Mapping[str, Any]) -> str:
    """Returns the change of each seed."""
    return ", ".join(map(change, row["changes"]))


def _heading(numbers: Mapping[str, Any]) -> str:
    header, probe = numbers["header"], numbers["header"]["probe"]
    seeds = ", ".join(map(str, header["seeds"]))
    where = f"on {', '.join(header['devices']) or 'an unknown device'}, {' to '.join(_ends(header['dates']))}"
    took = "times not recorded"
    if header["stage_minutes"]:
        took = f"{header['stage_minutes']:.0f} minutes of stages in {header['clock_minutes']:.0f} minutes on the clock"
    window = "–".join(map(str, probe["alpha_window"]))
    return (
        f"# Post-training contrasts: {header['preset']}, seeds {seeds}\n\n"
        f"{where[0].upper()}{where[1:]}; {took}. Corpus {str(header['corpus'])[:12]}, general-text probe "
        f"{str(probe['fingerprint'])[:12]}: n = {probe['n']}, d = {probe['d']}, α over ranks {window}.\n"
        f"Start → end: means over seeds at a stage's first and last update. Change: end − start, paired by seed, and "
        f"the 95 % Student t interval of its mean.\n"
        f"*reproduced*: the interval excludes zero in the paper's direction; *opposite*: in the other one. Geometry is "
        f"judged on the general-text probe alone."
    )


def _ends(dates: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([dates[0], dates[-1]])) if dates else ["date unknown"]


def _statements(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        (NAMES[row["stage"]], row["text"], moved(row), with_interval(row), by_seed(row), row["verdict"]) for row in rows
    ]
    return table(("stage", "statement of the paper", "start → end", _CHANGE, "change by seed", "verdict"), cells)


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("stage", "measured", "start → end", _CHANGE, "change by seed")
    return table(
        header, [(NAMES[row["stage"]], row["what"], moved(row), with_interval(row), by_seed(row)) for row in rows]
    )


def _pass_at_k(curves: Mapping[str, Any], seeds: Sequence[int]) -> str:
    rows = [
        (str(k), value(mean(row["starts"])), value(mean(row["ends"])), with_interval(row), by_seed(row))
        for k, row in zip(curves["k"], curves["rows"], strict=True)
    ]
    said = [_crossing(at) for at in curves["crossing_by_seed"]]
    each = "; ".join(f"seed {seed}: {text}" for seed, text in zip(seeds, said, strict=True))
    if len(set(said)) == 1:
        each = f"in every seed: {said[0]}"
    header = ("k", "before", "after", _CHANGE, "change by seed")
    return f"{table(header, rows)}\n\nMeans over seeds: {_crossing(curves['crossing'])}; {each}."


def _crossing(at: Mapping[str, Any] | None) -> str:
    if at is None:
        return "not known"
    if at["after_leads_first"] is None:
        return "no difference"
    first, then = ("after", "before") if at["after_leads_first"] else ("before", "after")
    if at["k"] is None:
        return f"{first} leads, the curves do not cross"
    return f"{first} leads first, {then} from k = {at['k']}"


def _requirement(found: Mapping[str, Any]) -> str:
    verdicts = ["–" if met is None else "met" if met else "not met" for met in found["met"]]
    sets = " or ".join(map(str, found["answers"]))
    return (
        f"Required of the base: pass@1 below 0.3, and pass@256 of at least {found['least']:.3f} (uniform guesses over "
        f"the {sets} possible answers of two or three terms reach {found['guessing']:.3f} on average).\n"
        f"By seed: pass@1 "
        f"{', '.join(map(value, found['pass@1']))}; pass@256 {', '.join(map(value, found['pass@256']))}: "
        f"{', '.join(verdicts)}."
    )


def _crossed(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for stage, found in stages.items():
        for row in found:
            cells = [value(mean(values)) for values in row["cells"].values()]
            rows.append(
                (NAMES[stage], row["metric"], *cells, with_interval(row["weights"]), with_interval(row["rollouts"]))
            )
    sides = [f"{weights} W, {text} R" for weights in ("start", "end") for text in ("start", "end")]
    header = ("stage", "on rollouts", *sides, "by weights [95 % interval]", "by rollouts [95 % interval]")
    return f"W: weights, R: the rollouts that are read, of the stage's start or end.\n\n{table(header, rows)}"


def _overtraining(numbers: Mapping[str, Any]) -> str:
    rows = [
        (seed, f"{row['update']}", f"{row['tokens']:,.0f}", value(row["rankme"]), value(row["id"]), value(row["ood"]))
        for seed, points in numbers["overtraining"].items()
        for row in points
    ]
    header = ("seed", "update", "tokens", "base RankMe", "id loss after SFT", "ood loss after SFT")
    rise = numbers["overtraining_end"]
    return (
        f"In the first table the change is the least-squares slope, start → end the loss from the first and from the "
        f"last checkpoint.\nThe direction stated for ood loss is that of {OOD_IN_PAPER}.\n\n{table(header, rows)}\n\n"
        f"ood loss, from its lowest before the last checkpoint to the last: {moved(rise)}, {with_interval(rise)}; "
        f"by seed {by_seed(rise)}."
    )


def _real(real: Mapping[str, Any]) -> str:
    probe, finished = real["probe"], real["finished"]
    seeds = ", ".join(map(str, real["seeds"]))
    window = "–".join(map(str, probe["alpha_window"]))
    return (
        f"Seeds {seeds}, on {finished.get('device')}, {finished.get('date')}; n = {probe['n']}, d = {probe['d']}, "
        f"α over ranks {window}: not comparable with the numbers above.\n\n" + _shown(real["rows"])
    )
