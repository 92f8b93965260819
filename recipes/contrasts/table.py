"""contrast.md: the numbers of a contrast as tables that read well in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from writing.markdown import table

from contrasts.verdicts import OOD_IN_PAPER, mean

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
    """Return the page for what `compare.compare` gives."""
    parts = [_heading(numbers["header"]), _statements(numbers["statements"])]
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


def _value(number: float | None) -> str:
    """Four digits, or a dash where there is no number."""
    return "–" if number is None else f"{number:.4g}".replace("-", "−")


def _change(number: float | None) -> str:
    """A sign and three digits, or a dash where there is no number."""
    return "–" if number is None else f"{number:+.3g}".replace("-", "−")


def _with_interval(row: Row) -> str:
    """The mean change and its interval."""
    if row["low"] is None:
        return f"{_change(row['mean'])} [no interval]" if row["mean"] is not None else "–"
    return f"{_change(row['mean'])} [{_change(row['low'])}, {_change(row['high'])}]"


def _moved(row: Row) -> str:
    """Start and end, means over the seeds that have both."""
    pairs = [pair for pair in zip(row["starts"], row["ends"], strict=True) if None not in pair]
    return " → ".join(_value(mean([pair[side] for pair in pairs])) for side in (0, 1))


def _by_seed(row: Row) -> str:
    return ", ".join(map(_change, row["changes"]))


def _changes(row: Row) -> tuple[str, str]:
    return _with_interval(row), _by_seed(row)


def _heading(header: Row) -> str:
    probe, dates = header["probe"], header["dates"] or ["date unknown"]
    where = f"on {', '.join(header['devices']) or 'an unknown device'}, {' to '.join(sorted({dates[0], dates[-1]}))}"
    took = "times not recorded"
    if header["stage_minutes"]:
        took = f"{header['stage_minutes']:.0f} minutes of stages in {header['clock_minutes']:.0f} minutes on the clock"
    return (
        f"# Post-training contrasts: {header['preset']}, seeds {', '.join(map(str, header['seeds']))}\n\n"
        f"{where[0].upper()}{where[1:]}; {took}. Corpus {str(header['corpus'])[:12]}, general-text probe "
        f"{str(probe['fingerprint'])[:12]}: {_size(probe)}.\n"
        f"Start → end: means over seeds at a stage's first and last update. Change: end − start, paired by seed, and "
        f"the 95 % Student t interval of its mean.\n"
        f"*reproduced*: the interval excludes zero in the paper's direction; *opposite*: in the other one. Geometry is "
        f"judged on the general-text probe alone."
    )


def _size(probe: Row) -> str:
    return f"n = {probe['n']}, d = {probe['d']}, α over ranks {'–'.join(map(str, probe['alpha_window']))}"


def _statements(rows: Sequence[Row]) -> str:
    header = ("stage", "statement of the paper", "start → end", *_CHANGES, "verdict")
    return table(header, [(NAMES[r["stage"]], r["text"], _moved(r), *_changes(r), r["verdict"]) for r in rows])


def _shown(rows: Sequence[Row]) -> str:
    header = ("stage", "measured", "start → end", *_CHANGES)
    return table(header, [(NAMES[row["stage"]], row["what"], _moved(row), *_changes(row)) for row in rows])


def _pass_at_k(curves: Row, seeds: Sequence[int]) -> str:
    rows = [
        (k, _value(mean(row["starts"])), _value(mean(row["ends"])), *_changes(row))
        for k, row in zip(curves["k"], curves["rows"], strict=True)
    ]
    crossings = [_crossing(at) for at in curves["crossing_by_seed"]]
    each = "; ".join(f"seed {seed}: {crossing}" for seed, crossing in zip(seeds, crossings, strict=True))
    if len(set(crossings)) == 1:
        each = f"in every seed: {crossings[0]}"
    page = table(("k", "before", "after", *_CHANGES), rows)
    return f"{page}\n\nMeans over seeds: {_crossing(curves['crossing'])}; {each}."


def _crossing(at: Row | None) -> str:
    if at is None:
        return "not known"
    if at["after_leads_first"] is None:
        return "no difference"
    first, then = ("after", "before") if at["after_leads_first"] else ("before", "after")
    if at["k"] is None:
        return f"{first} leads, the curves do not cross"
    return f"{first} leads first, {then} from k = {at['k']}"


def _requirement(found: Row) -> str:
    verdicts = ["–" if met is None else "met" if met else "not met" for met in found["met"]]
    one, many = (", ".join(map(_value, found[key])) for key in ("pass@1", "pass@256"))
    return (
        f"Required of the base: pass@1 below 0.3, and pass@256 of at least {found['least']:.3f} (uniform guesses over "
        f"the {' or '.join(map(str, found['answers']))} possible answers of two or three terms reach "
        f"{found['guessing']:.3f} on average).\n"
        f"By seed: pass@1 {one}; pass@256 {many}: {', '.join(verdicts)}."
    )


def _crossed(stages: Mapping[str, Sequence[Row]]) -> str:
    sides = [f"{weights} W, {text} R" for weights in ("start", "end") for text in ("start", "end")]
    header = ("stage", "on rollouts", *sides, "by weights [95 % interval]", "by rollouts [95 % interval]")
    rows = []
    for stage, row in ((stage, row) for stage, found in stages.items() for row in found):
        effects = (_with_interval(row[factor]) for factor in ("weights", "rollouts"))
        rows.append((NAMES[stage], row["metric"], *(_value(mean(cell)) for cell in row["cells"].values()), *effects))
    return f"W: weights, R: the rollouts that are read, of the stage's start or end.\n\n{table(header, rows)}"


def _overtraining(numbers: Row) -> str:
    header = ("seed", "update", "tokens", "base RankMe", "id loss after SFT", "ood loss after SFT")
    rows = [
        (seed, row["update"], f"{row['tokens']:,.0f}", *(_value(row[key]) for key in ("rankme", "id", "ood")))
        for seed, points in numbers["overtraining"].items()
        for row in points
    ]
    rise = numbers["overtraining_end"]
    return (
        f"In the first table the change is the least-squares slope, start → end the loss from the first and from the "
        f"last checkpoint.\nThe direction stated for ood loss is that of {OOD_IN_PAPER}.\n\n{table(header, rows)}\n\n"
        f"ood loss, from its lowest before the last checkpoint to the last: {_moved(rise)}, {_with_interval(rise)}; "
        f"by seed {_by_seed(rise)}."
    )


def _real(real: Row) -> str:
    seeds, finished = ", ".join(map(str, real["seeds"])), real["finished"]
    return (
        f"Seeds {seeds}, on {finished.get('device')}, {finished.get('date')}; {_size(real['probe'])}: not comparable "
        f"with the numbers above.\n\n{_shown(real['rows'])}"
    )
