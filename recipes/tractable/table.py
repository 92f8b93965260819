"""bottleneck.md: what each setting of the bottleneck model did, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median_low
from typing import Any

from writing.markdown import table_of

FALL = 0.001  # of RankMe between 1 and d, d = 2 or 3: less is called none

_SMALL = f"""RankMe of the features, shares of squared singular values, mean not removed unless "centred" is said.
Means over seeds, median updates in brackets; a range where seeds differ. Dip: the lowest value of all. Peak: the
highest from there on. Drawdown: from the peak to the lowest value behind it. Largest fall: behind the dip, from any
value to a later one, whether or not a higher peak follows. In brackets behind both: seeds where it is above {FALL}."""

_LARGE = """RankMe of the features at the ends of its phases, by the rule of `geomcallbacks phases`, in both
conventions. w: warm-up, e: entropy-seeking, c: compression-seeking, –: no phase (start and end are given). In brackets
behind them the number of seeds, behind a value the update; means and median updates over these seeds. Loss: at the
end, and the lowest possible, nats."""


def render(numbers: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    took = f"{numbers['seconds_small']:.1f} s of CPU time for the first table"
    if numbers["large"]:
        took += f", {numbers['seconds']:.0f} s with the second"
    parts = ["# The bottleneck model", f"{versions}; {took}, one thread.", _SMALL]
    parts.append(table_of([_small_row(row) for row in numbers["small"]]))
    if numbers["large"]:
        parts += ["## 1,024 classes", _LARGE, table_of([_large_row(row) for row in numbers["large"]])]
    return "\n\n".join(parts) + "\n"


def _small_row(row: Mapping[str, Any]) -> dict[str, object]:
    """A row of the first table."""
    seeds, centred = (
        {key: [seed[key] for seed in row[kind]] for key in row[kind][0]} for kind in ("uncentred", "centred")
    )
    at = lambda mark: f"{fmean(seeds[mark]):.4f} ({median_low(seeds[f'{mark}_step']):,})"
    return {
        "setting": row["name"],
        "seeds": row["seeds"],
        "start": f"{fmean(seeds['start']):.4f}",
        "dip": at("dip"),
        "peak": at("peak"),
        "end": f"{fmean(seeds['end']):.4f}",
        "drawdown": _range(seeds["drawdown"]),
        "largest fall": _range(seeds["largest_fall"]),
        "centred: start": f"{fmean(centred['start']):.4f}",
        "centred: drawdown": _range(centred["drawdown"]),
    }


def _large_row(row: Mapping[str, Any]) -> dict[str, object]:
    loss, floor = (fmean(curve[key][-1] for curve in row["curves"]) for key in ("loss", "floor"))
    return {
        "setting": row["name"],
        "d": row["d"],
        "updates": f"{row['steps']:,}",
        "RankMe, centred": phases_in_words(row["phases"], [curve["rankme"] for curve in row["curves"]]),
        "RankMe, uncentred": phases_in_words(
            row["phases_uncentred"], [curve["rankme_uncentred"] for curve in row["curves"]]
        ),
        "loss (lowest)": f"{loss:.3f} ({floor:.3f})",
    }


def phases_in_words(by_seed: Sequence[Sequence[Mapping[str, Any]]], curves: Sequence[Sequence[float]]) -> str:
    """Return "w e (2): 31.0 → 4.6 (24) → 21.0; …", a part for each sequence of phases that occurs."""
    groups: dict[str, list[list[tuple[float, float]]]] = {}
    for phases, curve in zip(by_seed, curves, strict=True):
        ends = [(phase["end"], phase["rankme_end"]) for phase in phases] or [(0, curve[-1])]
        groups.setdefault(" ".join(phase["name"][0] for phase in phases) or "–", []).append([(0, curve[0]), *ends])
    parts = []
    for names, seeds in sorted(groups.items(), key=lambda group: -len(group[1])):
        marks = [list(zip(*points, strict=True)) for points in zip(*seeds, strict=True)]  # updates and values
        shown = [f"{fmean(values):.1f} ({median_low(steps):,.0f})" for steps, values in marks]
        shown[0], shown[-1] = (f"{fmean(values):.1f}" for _, values in (marks[0], marks[-1]))
        parts.append(f"{names} ({len(seeds)}): {' → '.join(shown)}")
    return "; ".join(parts)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    shown = low if low == high else f"{low}–{high}"
    return f"{shown} ({sum(value > FALL for value in values)})"
