"""bottleneck.md: what each setting of the bottleneck model did, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

from writing.markdown import table_of
from writing.page import fill

FALL = 0.001  # of RankMe between 1 and d, d = 2 or 3: less is called none


def render(numbers: Mapping[str, Any]) -> str:
    """Return page.md.jinja for the numbers of `softmax_bottleneck.py`."""
    small, large = table_of(list(map(_small_row, numbers["small"]))), table_of(list(map(_large_row, numbers["large"])))
    template = Path(__file__).with_name("page.md.jinja")
    return fill(template, fall=FALL, small_table=small, large_table=large, **numbers)


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
