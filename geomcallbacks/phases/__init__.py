"""The phases of a run, found on its curve of RankMe: `rule` states how."""

from geomcallbacks.phases.rule import FEWEST_POINTS, PHASE_NAMES, Phase, PhaseChange, PhaseTracker, find_phases

__all__ = ["FEWEST_POINTS", "PHASE_NAMES", "Phase", "PhaseChange", "PhaseTracker", "find_phases"]
