"""An interval for each metric, by leaving out groups of probe rows (texts) in turn.

The grouped jackknife (Tukey 1958; Efron and Tibshirani 1993, chapter 11) rather than the bootstrap: rows drawn with
replacement repeat, and repeated rows lower the rank of a sample whose rank is what is being estimated.
"""

from __future__ import annotations

import math

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.spectra.moments import Rows
from geomcallbacks.spectra.spectrum import spectrum_of_rows
from geomcallbacks.spectra.summary import describe
from geomcallbacks.statistics import t_quantile

GROUPS = 20


def jackknife(rows: Rows, window: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of the metrics of `rows`, for sampling of probe rows.

    All features of one probe row are left out together, since they are correlated. The interval speaks of the choice
    of texts at this n; it does not correct the bias that a small n gives to every rank.

    Args:
        rows: the features. At least GROUPS distinct probe rows, or there is no interval.
        window: ranks over which α is fitted.

    Returns:
        (low, high) by metric; metrics without a value in any of the groups are left out.
    """
    rows_nd, origin_n = rows.finish()
    if len(set(origin_n.tolist())) < GROUPS:
        return {}
    whole, _ = describe(spectrum_of_rows(rows_nd, rows.eps), window)
    parts = [describe(spectrum_of_rows(rows_nd[origin_n % GROUPS != g], rows.eps), window)[0] for g in range(GROUPS)]
    found = {}
    for name in METRIC_NAMES:
        centre, values = whole[name], [value for part in parts if (value := part[name]) is not None]
        if centre is not None and len(values) == GROUPS:
            mean = sum(values) / GROUPS
            variance = (GROUPS - 1) / GROUPS * sum((value - mean) ** 2 for value in values)
            reach = t_quantile(GROUPS - 1) * math.sqrt(variance)
            found[name] = (centre - reach, centre + reach)
    return found
