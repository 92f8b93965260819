"""The numbers of an analysis: phases by layer and probe, turning points, and behaviour beside the geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geomcallbacks import read_records
from geomcallbacks.behaviour import learned_at
from geomcallbacks.phases import Phase, find_phases
from geomcallbacks.statistics import spearman

Record = Mapping[str, Any]

#: Numbers of behaviour that are held against the geometry, where a run has them.
BEHAVIOUR = ("memorisation/rho", "cloze_near/accuracy", "cloze_far/accuracy", "cloze_far_cut/accuracy")


def analyse(live: Path, behaviour: Path, traced: Path, intervention: Path) -> dict[str, Any]:
    """Return all numbers of an analysis, as plain values.

    Args:
        live: record file of the run itself: one probe, one layer.
        behaviour: record file of its behaviour.
        traced: record file of its checkpoints on all layers and probes; the run's own probe is called "probe".
        intervention: record file of the spectral intervention at some checkpoints.
    """
    own = read_records(live)
    curves = by_curve(read_records(traced))
    last_layer = list(dict.fromkeys(layer for _, layer in curves))[-1]
    beside = read_records(behaviour)
    phases = find_phases(*columns(own))
    return {
        "probe": {key: own[0][key] for key in ("fingerprint", "n", "d", "positions", "alpha_window", "precision")},
        "phases": [phase.to_dict() for phase in phases],
        "turning_points": turns(own),
        "layers": {layer: curve_numbers(rows) for (probe, layer), rows in curves.items() if probe == "probe"},
        "probes": {probe: curve_numbers(rows) for (probe, layer), rows in curves.items() if layer == last_layer},
        "behaviour": {name: behaviour_numbers(name, own, beside, phases) for name in BEHAVIOUR if name in beside[0]},
        "bands": band_numbers(beside),
        "intervention": read_records(intervention),
        "traced_off": largest_difference(own, curves["probe", last_layer]),
    }


def by_curve(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records of each (probe, layer), in the order of their updates."""
    curves: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: int(record["step"])):
        curves.setdefault((record["probe"], record["layer"]), []).append(record)
    return curves


def columns(rows: Sequence[Record]) -> tuple[list[int], list[float | None], list[float | None]]:
    """Return updates, RankMe and α, as `find_phases` takes them."""
    return [row["step"] for row in rows], [row["rankme"] for row in rows], [row["alpha_req"] for row in rows]


def curve_numbers(rows: Sequence[Record]) -> dict[str, Any]:
    """Return phases and turning points of one curve."""
    return {"phases": [phase.to_dict() for phase in find_phases(*columns(rows))], "turning_points": turns(rows)}


def turns(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns update, RankMe and α at the start of a curve, where each of its phases ends, and at its end."""
    rows = [row for row in rows if row["rankme"] is not None]
    steps = {rows[0]["step"], *(phase.end for phase in find_phases(*columns(rows))), rows[-1]["step"]}
    return [{key: row[key] for key in ("step", "rankme", "alpha_req")} for row in rows if row["step"] in steps]


def behaviour_numbers(
    name: str, own: Sequence[Record], beside: Sequence[Record], phases: Sequence[Phase]
) -> dict[str, Any]:
    """Return where a number of behaviour starts, is highest and ends, and its rank correlation with the geometry.

    The correlation is over all measured updates, and over those of each phase of which there are four or more: behind
    its start, up to its end; of phases of one name the last.
    """
    values = {row["step"]: row[name] for row in beside if row.get(name) is not None}
    first, *_, last = steps = sorted(values)
    top = max(steps, key=values.__getitem__)
    gain = values[last] - values[first]
    spans = {"all": (-1, last)} | {phase.name: (phase.start or -1, phase.end) for phase in phases}
    correlations = {}
    for label, (start, end) in spans.items():
        rows = [row for row in own if start < row["step"] <= end and row["step"] in values]
        if len(rows) >= 4:
            column = [values[row["step"]] for row in rows]
            metrics = ("rankme", "alpha_req")
            correlations[label] = {metric: spearman([row[metric] for row in rows], column) for metric in metrics}
    return {
        "start": values[first],
        "highest": {"step": top, "value": values[top]},
        "half_of_gain_at": next(s for s in steps if gain == 0 or (values[s] - values[first]) / gain >= 0.5),
        "end": values[last],
        "rank_correlation": correlations,
    }


def band_numbers(beside: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """Return start, end and the update of half the drop of the loss of each token-frequency band."""
    halves = learned_at(beside) if "primacy/band_1" in beside[0] else {}
    ends = {band: {"start": beside[0][f"primacy/{band}"], "end": beside[-1][f"primacy/{band}"]} for band in halves}
    return {band.removeprefix("band_"): ends[band] | {"half_of_drop_at": half} for band, half in halves.items()}


def largest_difference(live: Sequence[Record], traced: Sequence[Record]) -> float:
    """Return the largest relative difference between a run's own RankMe and that of its checkpoints."""
    logged = {row["step"]: row["rankme"] for row in live}
    return max(abs(row["rankme"] / logged[row["step"]] - 1) for row in traced)
