"""Phases on an axis: bands behind the curves, bars, and their names above."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from geomcallbacks.phases import Phase
from geomcallbacks.report.style import INK, PHASE_INKS, PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHARACTER = 0.0092  # inches for each point of the font size: the mean width of bold DejaVu Sans, rounded up


def shade_phases(axes: Sequence[Axes], phases: Sequence[Phase]) -> None:
    """Colour what lies behind the curves by phase, a thin line at each boundary."""
    for axis in axes:
        for start, end, name in _spans(axis, phases):
            axis.axvspan(start, end, color=PHASES[name], zorder=-2, linewidth=0)
        for phase in phases[1:]:
            axis.axvline(phase.start, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.55, zorder=-1)


def phase_bar(axis: Axes, place: float, phases: Sequence[Phase]) -> None:
    """Draw a bar across an axis at the height `place`, in the colours of the phases."""
    for start, end, name in _spans(axis, phases):
        axis.barh(place, end - start, left=start, height=0.78, color=PHASES[name], linewidth=0)


def name_phases(axis: Axes, phases: Sequence[Phase], width: float) -> None:
    """Write the phases' names above the bands of an axis that is `width` inches wide.

    They are moved aside where they would meet; if all do not fit, they are smaller and broken at the hyphen.
    """
    names, size = [phase.name for phase in phases], 9.0
    if sum(map(len, names)) * size * _CHARACTER > 0.94 * width:
        names, size = [name.replace("-", "-\n") for name in names], 7.0
    long = [max(map(len, name.split("\n"))) * size * _CHARACTER / width + 0.015 for name in names]
    left, right = map(math.log, axis.get_xlim())
    ends = [map(math.log, span[:2]) for span in _spans(axis, phases)]
    places = spread([((start + end) / 2 - left) / (right - left) for start, end in ends], long)
    for place, name, phase in zip(places, names, phases, strict=True):
        _above(axis, place, name, color=PHASE_INKS[phase.name], fontsize=size, ha="center")


def phase_legend(axis: Axes, names: Collection[str]) -> None:
    """Write the names of these phases above an axis, in their colours, wherever the phases themselves stand."""
    for place, name in zip((0.0, 0.2, 0.48), PHASES, strict=True):
        if name in names:
            _above(axis, place, name, color=PHASE_INKS[name], fontsize=9, ha="left")


def spread(centres: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Return centres of labels on [0, 1], moved as little as a sweep from either side needs so that none meet."""
    places, edge = list(centres), 0.0
    for k, width in enumerate(widths):
        places[k] = max(places[k], edge + width / 2)
        edge = places[k] + width / 2
    edge = 1.0
    for k, width in reversed(list(enumerate(widths))):
        places[k] = min(places[k], edge - width / 2)
        edge = places[k] - width / 2
    return places


def _spans(axis: Axes, phases: Sequence[Phase]) -> Iterator[tuple[float, float, str]]:
    """Start, end and name of each phase, the first and the last as far as the axis goes."""
    left, right = axis.get_xlim()
    cuts = [left, *(phase.start for phase in phases[1:]), right]
    for (start, end), phase in zip(pairwise(cuts), phases, strict=False):  # two cuts also where there is no phase
        yield start, end, phase.name


def _above(axis: Axes, place: float, text: str, **options: Any) -> None:
    """Write a little above an axis, at a share of its width."""
    options |= {"xycoords": "axes fraction", "textcoords": "offset points", "va": "baseline"}
    axis.annotate(text, (place, 1.0), xytext=(0, 5), fontweight="bold", linespacing=0.95, **options)
