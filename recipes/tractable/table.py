"""bottleneck.md: what each setting of the bottleneck model did, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FALL = 0.001  # of RankMe between 1 and d, d = 2 or 3: less is called none


def render(numbers: Mapping[str, Any]) -> str:
    """Returns the tables as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    parts = [
        "# The bottleneck model",
        f"{versions}; {numbers['seconds_small']:.1f} s of CPU time for the first table"
        + (f", {numbers['seconds']:.0f} s with the second, one thread." if numbers["large"] else ", one thread."),
        _SMALL,
        _table(_small_head(), [_small_row(row) for row in numbers["small"]]),
    ]
    if numbers["large"]:
        parts += ["## 1,024 classes", _LARGE, _table(_large_head(), [_large_row(row) for row in numbers["large"]])]
    return "\n\n".join(parts) + "\n"


_SMALL = f"""RankMe of the features, shares of squared singular values, mean not removed unless "centred" is said.
Means over seeds, median updates in brackets; a range where seeds differ. Dip: the lowest value of all. Peak: the
highest from there on. Drawdown: from the peak to the lowest value behind it. Largest fall: behind the dip, from any
value to a later one, whether or not a higher peak follows. In brackets behind both: seeds where it is above {FALL}."""

_LARGE = """RankMe of the features at the ends of its phases, by the rule of `geomcallbacks phases`, in both
conventions. w: warm-up, e: entropy-seeking, c: compression-seeking, –: no phase (start and end are given). In brackets
behind them the number of seeds, behind a value the update; means and median updates over these seeds. Loss: at the
end, and the lowest possible, nats."""


def _small_head() -> list[str]:
    return ["setting", "seeds", "start", "dip", "peak", "end", "drawdown", "largest fall", "centred: start", "drawdown"]


def _small_row(row: Mapping[str, Any]) -> list[str]:
    found, centred = row["uncentred"], row["centred"]
    return [
        row["name"],
        str(row["seeds"]),
        _mean(found, "start"),
        f"{_mean(found, 'dip')} ({_median(found, 'dip_step')})",
        f"{_mean(found, 'peak')} ({_median(found, 'peak_step')})",
        _mean(found, "end"),
        _range(found, "drawdown"),
        _range(found, "largest_fall"),
        _mean(centred, "start"),
        _range(centred, "drawdown"),
    ]


def _large_head() -> list[str]:
    return ["setting", "d", "updates", "RankMe, centred", "RankMe, uncentred", "loss (lowest)"]


def _large_row(row: Mapping[str, Any]) -> list[str]:
    losses = [statistics.fmean(curve[key][-1] for curve in row["curves"]) for key in ("loss", "floor")]
    return [
        row["name"],
        str(row["d"]),
        f"{row['steps']:,}",
        _phases(row["phases"], [curve["rankme"] for curve in row["curves"]]),
        _phases(row["phases_uncentred"], [curve["rankme_uncentred"] for curve in row["curves"]]),
        f"{losses[0]:.3f} ({losses[1]:.3f})",
    ]


def _phases(by_seed: Sequence[Sequence[Mapping[str, Any]]], curves: Sequence[Sequence[float]]) -> str:
    """Returns "w e (2): 31.0 → 4.6 (24) → 21.0; …", a part for each sequence of phases that occurs."""
    groups: dict[str, list[list[tuple[float, float]]]] = {}
    for phases, curve in zip(by_seed, curves, strict=True):
        ends = [(phase["end"], phase["rankme_end"]) for phase in phases] or [(0, curve[-1])]
        groups.setdefault(" ".join(phase["name"][0] for phase in phases) or "–", []).append([(0, curve[0]), *ends])
    parts = []
    for names, seeds in sorted(groups.items(), key=lambda group: -len(group[1])):
        points = []
        for place, marks in enumerate(zip(*seeds, strict=True)):
            inside = 0 < place < len(seeds[0]) - 1
            update = f" ({statistics.median_low(step for step, _ in marks):,.0f})" if inside else ""
            points.append(f"{statistics.fmean(value for _, value in marks):.1f}{update}")
        parts.append(f"{names} ({len(seeds)}): {' → '.join(points)}")
    return "; ".join(parts)


def _mean(found: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{statistics.fmean(row[key] for row in found):.4f}"


def _median(found: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{statistics.median_low(row[key] for row in found):,}"


def _range(found: Sequence[Mapping[str, float]], key: str) -> str:
    values = [row[key] for row in found]
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    shown = low if low == high else f"{low}–{high}"
    return f"{shown} ({sum(value > FALL for value in values)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in [head, ["---"] * len(head), *rows]
    )
