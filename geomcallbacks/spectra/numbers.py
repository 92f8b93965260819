"""From what was gathered of each layer to its numbers, which leave the device together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.spectra.jackknife import jackknife
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import spectrum_of
from geomcallbacks.spectra.summary import explain, no_values, summarise

_SUMMARY = len(METRIC_NAMES) + 1  # numbers of `summarise`


@dataclass(frozen=True)
class Numbers:
    """What is known of one layer: metrics, reasons where one is missing, intervals, eigenvalues (r,) on the CPU."""

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    eigenvalues: Tensor | None = None


def numbers_of(
    stores: Sequence[Moments | Rows],
    bad_rows: Sequence[int],
    *,
    n: int,
    window: tuple[int, int],
    intervals: bool,
    device: torch.device,
) -> list[Numbers]:
    """Solve for the spectrum of each layer, and summarise it.

    Args:
        stores: what was gathered of each layer.
        bad_rows: how many of its rows are not finite; a layer that has any gets no value.
        n: rows.
        window: ranks over which α is fitted.
        intervals: whether metrics get intervals; the stores are then `Rows`.
        device: where the numbers of all layers meet before they leave for the CPU.
    """
    spectra, spans = {}, {}
    for index, store in enumerate(stores):
        if bad_rows[index]:  # checked before the solve: eigvalsh may return finite numbers for a matrix of NaN
            continue
        spectra[index] = spectrum_of(store)
        if intervals and isinstance(store, Rows):
            spans[index] = jackknife(store, window)
    parts = [
        part.to(device) for spectrum in spectra.values() for part in (summarise(spectrum, window), spectrum.eigenvalues)
    ]
    left = torch.cat(parts).cpu() if parts else torch.empty(0)
    found = []
    for index, bad in enumerate(bad_rows):
        if index not in spectra:
            found.append(Numbers(*no_values(f"{bad} of {n} rows are not finite")))
            continue
        length = len(spectra[index].eigenvalues)
        summary, values, left = torch.tensor_split(left, [_SUMMARY, _SUMMARY + length])
        found.append(Numbers(*explain(summary.tolist(), n, window), spans.get(index, {}), values.clone()))
    return found
