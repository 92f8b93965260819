"""The phases of every curve in a record file, as data, and as a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geomcallbacks.phases.rule import FEWEST_POINTS, Phase, find_phases
from geomcallbacks.record import read_lines, read_records
from geomcallbacks.statistics import finite

_Curve = list[tuple[int, float | None, float | None]]


def phases_of_file(
    path: str | Path, *, probe: str | None = None, layer: str | None = None, from_scratch: bool | None = None
) -> dict[tuple[str, str], list[Phase]]:
    """Return the phases of each curve of a record file.

    Args:
        path: a record file, of a run or of `geomcallbacks trace`.
        probe: label of one probe; None: all.
        layer: label of one layer; None: all.
        from_scratch: as in `find_phases`; None: as the run was told, by its header.

    Returns:
        Phases by (probe, layer), in the order of the file; none for a flat curve.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no record file, holds no such probe or layer, or too few measurements.
    """
    curves = _curves(path)
    if not curves:
        raise ValueError(f"{path} holds no measurements of geometry: give the geometry.jsonl of a run or of a trace")
    for place, (kind, wanted) in enumerate((("probe", probe), ("layer", layer))):
        known = list(dict.fromkeys(key[place] for key in curves))
        if wanted not in (None, *known):
            raise ValueError(f"{path} has no {kind} {wanted!r}: choose from {known}")
        curves = {key: points for key, points in curves.items() if wanted in (None, key[place])}
    most = max(sum(value is not None for _, value, _ in points) for points in curves.values())
    if most < FEWEST_POINTS:
        raise ValueError(f"{path} holds {most} values of rankme: phases take at least {FEWEST_POINTS} measurements")
    if from_scratch is None:
        settings = [line["settings"] for line in read_lines(path) if isinstance(line.get("settings"), dict)]
        from_scratch = settings[-1].get("from_scratch") if settings else None
    return {key: find_phases(*zip(*points, strict=True), from_scratch=from_scratch) for key, points in curves.items()}


def _curves(path: str | Path) -> dict[tuple[str, str], _Curve]:
    """Return (step, RankMe, α) by (probe, layer)."""
    curves: dict[tuple[str, str], _Curve] = {}
    for number, row in enumerate(read_records(path), start=1):
        if "rankme" not in row:
            continue
        for name in ("step", "probe", "layer"):
            if name not in row:
                raise ValueError(f"{path}, record {number} has no {name!r}: it is none of geometry")
        point = (row["step"], row["rankme"], row.get("alpha_req"))
        for name, value in zip(("step", "rankme", "alpha_req"), point, strict=True):
            if finite(value) is None and (value is not None or name == "step"):
                raise ValueError(f"{path}, record {number}: {name} is {value!r}, and must be a number")
        curves.setdefault((str(row["probe"]), str(row["layer"])), []).append(point)
    return curves


def table(phases: Sequence[Phase]) -> str:
    """Return the lines of a table: each phase with its ends, their intervals, RankMe and α."""
    if not phases:
        return f"no phase: RankMe stays level within its noise, or there are fewer than {FEWEST_POINTS} values"
    rows = [("phase", "from", "to", "RankMe", "α"), *map(_cells, phases)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cells(phase: Phase) -> tuple[str, ...]:
    agrees = {True: " (opposite to RankMe)", False: " (as RankMe does)", None: ""}[phase.agrees]
    start, end = _boundary(phase.start, phase.start_interval), _boundary(phase.end, phase.end_interval)
    return phase.name, start, end, f"{phase.rankme_start:.4g} → {phase.rankme_end:.4g}", f"{phase.alpha or '–'}{agrees}"


def _boundary(step: float, interval: tuple[float, float] | None) -> str:
    return f"{step:,g}" if interval is None else "{:,g} ({:,g}–{:,g})".format(step, *interval)
