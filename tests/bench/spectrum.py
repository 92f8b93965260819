"""Spectrum of n x d features: ours beside singular values and scikit-learn's PCA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.table import Section
from bench.timing import in_turn, rows_of
from geomcallbacks.metrics import alpha_req, rankme
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import spectrum_of

SHAPES = [(2048, 768), (10000, 2048), (2048, 4096), (15000, 4096), (15000, 5120)]
QUICK = [(2048, 768), (1024, 2048)]
OURS, EXACT = "ours, both spectra", "svdvals float64"
BATCH = 32  # rows that come together in a measurement


def spectrum(device: torch.device, shapes: list[tuple[int, int]], limit: float = 60.0) -> Section:
    """Time, memory and error of every method at every shape."""
    section = Section(
        "Spectrum of n x d",
        "float32 features whose covariance decays as 1/i. Ours is what a measurement does: batches of"
        f" {BATCH} rows into `Moments` (`Rows` where n <= d), then the centred *and* the uncentred spectrum in"
        " float64; all others give the centred one alone. Peak memory is beyond the features themselves, which ours"
        " does not need whole where n > d. Errors are against the float64 singular values. PCA runs on the CPU.",
    )
    for n, d in shapes:
        rows_nd = power_law_rows(n, d).to(device)
        found: dict[str, Tensor] = {}
        calls = {name: partial(_keep, found, name, method, rows_nd) for name, method in methods().items()}
        rows = rows_of(in_turn(calls, device, limit=limit), OURS)
        exact = found[EXACT]
        for row in rows:
            values = found[row["method"]].to(device)
            errors = {"RankMe error": rankme(values) / rankme(exact) - 1}
            if min(n, d) > 100:
                errors["alpha error"] = alpha_req(values)[0] / alpha_req(exact)[0] - 1
            shown = {name: abs(float(error)) for name, error in errors.items()}
            section.rows.append({"n x d": f"{n} x {d}", **row, **shown})
    return section


def methods() -> dict[str, Callable[[Tensor], Tensor]]:
    """Each from rows (n, d) to the descending eigenvalues of their covariance."""
    return {
        OURS: lambda rows_nd: spectrum_of(fed(rows_nd)).eigenvalues,
        "ours, centred alone": centred_alone,
        "svdvals float32": partial(singular, dtype=torch.float32),
        EXACT: partial(singular, dtype=torch.float64),
        "scikit-learn full PCA": pca,
    }


def power_law_rows(n: int, d: int) -> Tensor:
    """float32 rows whose covariance decays as 1/i, as hidden states' does, with a mean."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1).float() ** -0.5
    return torch.randn(n, d, generator=generator) * scale + 1.0


def fed(rows_nd: Tensor) -> Moments | Rows:
    """The store of a measurement, given the rows batch by batch."""
    n, d = rows_nd.shape
    store = Rows(d) if n <= d else Moments(d, rows_nd.device)
    for batch_bd, origin_b in zip(rows_nd.split(BATCH), torch.arange(n).split(BATCH), strict=True):
        store.update(batch_bd, origin_b)
    return store


def centred_alone(rows_nd: Tensor) -> Tensor:
    """Ours without the spectrum of the uncentred rows."""
    store = fed(rows_nd)
    if isinstance(store, Moments):
        gram = store.finish().m2_dd
    else:
        stacked_nd = store.finish().rows_nd
        centred_nd = stacked_nd - stacked_nd.mean(0)
        gram = centred_nd @ centred_nd.T
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)[: len(rows_nd) - 1] / (len(rows_nd) - 1)


def singular(rows_nd: Tensor, dtype: torch.dtype) -> Tensor:
    """From the singular values of the centred rows."""
    rows_nd = rows_nd.to(dtype)
    values = torch.linalg.svdvals(rows_nd - rows_nd.mean(0)).square() / (len(rows_nd) - 1)
    return values[: len(rows_nd) - 1]


def pca(rows_nd: Tensor) -> Tensor:
    """What the official code of Li et al. 2025 runs."""
    from sklearn.decomposition import PCA

    variance = PCA(svd_solver="full").fit(rows_nd.cpu().numpy()).explained_variance_
    return torch.from_numpy(variance)[: len(rows_nd) - 1].double()


def _keep(found: dict[str, Tensor], name: str, method: Callable[[Tensor], Tensor], rows_nd: Tensor) -> None:
    found[name] = method(rows_nd)
