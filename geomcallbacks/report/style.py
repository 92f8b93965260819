"""How the figures look: colours, and the dress of an axis. Imports no matplotlib itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Options of what matplotlib draws.
Look = dict[str, Any]

#: Text, lines that carry no data, small print, and the grid.
INK, GREY, SOFT, GRID = "#1f2933", "#9aa5b1", "#616e7c", "#e4e7eb"
TROUGH, PEAK = "#c8553d", "#2a7f62"
#: Of the numbers, by their name in the records, where a figure shows one run.
COLOURS = {"loss": "#52606d", "rankme": "#1c5d99", "alpha_req": "#8f4ba8", "top1_share": "#b8860b"}
#: Of the bands behind the curves, by the names in `geomcallbacks.phases`; light enough for curves and text on them.
PHASES = {"warm-up": "#f9e6de", "entropy-seeking": "#deecf8", "compression-seeking": "#ebe2f4"}
#: Of the phases' names in text.
PHASE_INKS = {"warm-up": "#a8442b", "entropy-seeking": "#1c5d99", "compression-seeking": "#6d3a8c"}
#: Of lines that are told apart by a legend: runs, or numbers in one panel. They come again after eight.
SERIES = ("#1c5d99", "#c8553d", "#2a7f62", "#b8860b", "#8f4ba8", "#0f8b8d", "#d1495b", "#52606d")


def style(axis: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Light grid, no frame above and right of it, quiet ticks.

    Args:
        axis: the axis.
        grid: which grid lines are drawn.
    """
    axis.grid(True, which="major", axis=grid, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=COLOURS["loss"], labelsize=9)
    axis.yaxis.label.set_color(INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)


def digits(value: float) -> str:
    """A value in three digits, or whole from 1,000 on."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def plain(text: object, longest: int | None = None) -> str:
    """`text` for a figure, as it stands: matplotlib would read what is between two `$` as mathematics.

    Args:
        text: a name or label of a run.
        longest: characters beyond which it is cut. Line breaks and control characters become spaces.
    """
    shown = "".join(character if character.isprintable() else " " for character in str(text))
    if longest is not None and len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown.replace("$", r"\$")
