"""The figure of the eigenspectra: at the start, at the boundaries of the phases, at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geomcallbacks.report.axes import legend, panels, plain_ticks
from geomcallbacks.report.run import Run
from geomcallbacks.report.style import GRID, INK, SERIES, SOFT, digits
from geomcallbacks.statistics import finite

_ROUND_OFF = 1e-10  # of the first eigenvalue: a direction that is not there, such as the sum of a LayerNorm


def draw_spectra(run: Run, path: Path) -> bool:
    """Draw the eigenspectra of `run.marks`; return False where none was kept."""
    kept = [(name, row, values) for name, row in run.marks if (values := run.spectrum(row))]
    if not kept:
        return False
    low, high = kept[-1][1]["alpha_window"]
    note = "λ: eigenvalues of the centred covariance of the probe’s hidden states.\n"
    note += f"Grey: ranks {low}–{high}, over which α is fitted. Not shown: λ < {_ROUND_OFF:g} λ₁."
    title = f"{run.name}: eigenspectra of {run.layers[-1]}"
    with panels(path, title, [2.9], xlabel="rank of the eigenvalue", note=note) as (axis,):
        for place, (name, row, values) in enumerate(kept):
            share = np.array(values) / sum(values)
            share = share[share > _ROUND_OFF * share.max()]
            alpha = finite(row.get("alpha_req"))
            label = f"{name}, update {row['step']:,}: RankMe {digits(row['rankme'])}"
            label += "" if alpha is None else f", α {alpha:.2f}"
            colour = {"start": SOFT, "end": SERIES[0]}.get(name, SERIES[place % len(SERIES)])
            marker = {"marker": "o", "markersize": 2.6} if len(share) <= 64 else {}
            axis.loglog(range(1, len(share) + 1), share, color=colour, linewidth=1.6, label=label, **marker)
        axis.axvspan(low, high, color=GRID, alpha=0.6, zorder=-2, linewidth=0)
        axis.set_ylabel("λ / Σλ", color=INK)
        plain_ticks(axis.xaxis, close=axis.get_xlim()[1] < 300)
        plain_ticks(axis.yaxis, close=False)
        legend(axis, loc="lower left")
    return True
