"""The numbers of an analysis: phases by layer and probe, turning points, and behaviour beside the geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geomcallbacks import read_records
from geomcallbacks.behaviour import learned_at
from geomcallbacks.phases import Phase, find_phases
from geomcallbacks.report import turning_points
from geomcallbacks.statistics import spearman

Record = Mapping[str, Any]

#: Numbers of behaviour that are held against the geometry, where a run has them.
BEHAVIOUR = ("memorisation/rho", "cloze_near/accuracy", "cloze_far/accuracy", "cloze_far_cut/accuracy")


def analyse(live: Path, behaviour: Path, traced: Path, intervention: Path) -> dict[str, Any]:
    """Returns all numbers of an analysis, as plain values.

    Args:
        live: Record file of the run itself: one probe, one layer.
        behaviour: Record file of its behaviour.
        traced: Record file of its checkpoints on all layers and probes; the run's own probe is called "probe".
        intervention: Record file of the spectral intervention at some checkpoints.
    """
    own = read_records(live)
    curves = by_curve(read_records(traced))
    last_layer = list(dict.fromkeys(layer for _, layer in curves))[-1]
    did = read_records(behaviour)
    phases = find_phases(*columns(own))
    return {
        "probe": {key: own[0][key] for key in ("fingerprint", "n", "d", "positions", "alpha_window", "precision")},
        "phases": [phase.to_dict() for phase in phases],
        "turning_points": turns(own),
        "layers": {layer: curve_numbers(rows) for (probe, layer), rows in curves.items() if probe == "probe"},
        "probes": {probe: curve_numbers(rows) for (probe, layer), rows in curves.items() if layer == last_layer},
        "behaviour": {name: behaviour_numbers(name, own, did, phases) for name in BEHAVIOUR if name in did[0]},
        "bands": band_numbers(did),
        "intervention": read_records(intervention),
        "traced_off": largest_difference(own, curves["probe", last_layer]),
    }


def by_curve(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Returns the records of each (probe, layer), in the order of their updates."""
    curves: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: int(record["step"])):
        curves.setdefault((record["probe"], record["layer"]), []).append(record)
    return curves


def columns(rows: Sequence[Record]) -> tuple[list[int], list[float | None], list[float | None]]:
    """Returns updates, RankMe and α, as `find_phases` takes them."""
    return [row["step"] for row in rows], [row["rankme"] for row in rows], [row["alpha_req"] for row in rows]


def curve_numbers(rows: Sequence[Record]) -> dict[str, Any]:
    """Returns phases and turning points of one curve."""
    return {"phases": [phase.to_dict() for phase in find_phases(*columns(rows))], "turning_points": turns(rows)}


def turns(rows: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Returns update, RankMe and α at the start, trough, peak and end of a curve."""
    rows = [row for row in rows if row["rankme"] is not None]
    trough, peak = turning_points([row["rankme"] for row in rows])
    marks = {"start": rows[0], "trough": rows[trough], "peak": rows[peak], "end": rows[-1]}
    return {name: {key: row[key] for key in ("step", "rankme", "alpha_req")} for name, row in marks.items()}


def behaviour_numbers(
    name: str, own: Sequence[Record], did: Sequence[Record], phases: Sequence[Phase]
) -> dict[str, Any]:
    """Returns where a number of behaviour starts, is highest and ends, and its rank correlation with the geometry.

    The correlation is over all measured updates, and over those of each phase of which there are four or more: behind
    its start, up to its end; of phases of one name the last.
    """
    values = {row["step"]: row[name] for row in did if row.get(name) is not None}
    steps = sorted(values)
    top = max(steps, key=values.__getitem__)
    gain = values[steps[-1]] - values[steps[0]]
    half = next(step for step in steps if gain == 0 or (values[step] - values[steps[0]]) / gain >= 0.5)
    spans = {"all": (-1, steps[-1])} | {phase.name: (phase.start or -1, phase.end) for phase in phases}
    correlations = {}
    for label, (start, end) in spans.items():
        rows = [row for row in own if start < row["step"] <= end and row["step"] in values]
        if len(rows) >= 4:
            correlations[label] = {
                metric: spearman([row[metric] for row in rows], [values[row["step"]] for row in rows])
                for metric in ("rankme", "alpha_req")
            }
    return {
        "start": values[steps[0]],
        "highest": {"step": top, "value": values[top]},
        "half_of_gain_at": half,
        "end": values[steps[-1]],
        "rank_correlation": correlations,
    }


def band_numbers(did: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """Returns start, end and the update of half the drop of the loss of each token-frequency band."""
    bands = [key for key in did[0] if key.startswith("primacy/band_")]
    at = learned_at(did) if bands else {}
    return {
        key.rpartition("_")[2]: {
            "start": did[0][key],
            "end": did[-1][key],
            "half_of_drop_at": at[key.partition("/")[2]],
        }
        for key in bands
    }


def largest_difference(live: Sequence[Record], traced: Sequence[Record]) -> float:
    """Returns the largest relative difference between a run's own RankMe and that of its checkpoints."""
    logged = {row["step"]: row["rankme"] for row in live}
    return max(abs(row["rankme"] / logged[row["step"]] - 1) for row in traced)
