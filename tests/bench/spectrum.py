"""Spectrum of n x d features: ours beside singular values and scikit-learn's PCA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.section import Section
from bench.timing import in_turn, rows_of
from geomcallbacks.metrics import alpha_req, rankme
from geomcallbacks.spectra.moments import Moments, Rows
from geomcallbacks.spectra.spectrum import spectrum_of

SHAPES = [(2048, 768), (10000, 2048), (2048, 4096), (15000, 4096), (15000, 5120)]
QUICK = [(2048, 768), (1024, 2048)]
OURS, EXACT = "ours, both spectra", "svdvals float64"
BATCH = 32  # rows that come together in a measurement


def spectrum(device: torch.device, shapes: list[tuple[int, int]], limit: float = 60.0) -> Section:
    """Measure time, memory and error of every method at every shape."""
    found = []
    for n, d in shapes:
        rows_nd = power_law_rows(n, d).to(device)
        calls = {name: partial(method, rows_nd) for name, method in METHODS.items()}
        costs = in_turn(calls, device, limit=limit)
        exact = costs[EXACT].result
        for row in rows_of(costs, OURS):
            values = costs[row["method"]].result.to(device)
            errors = {"RankMe error": rankme(values) / rankme(exact) - 1}
            if min(n, d) > 100:
                errors["alpha error"] = alpha_req(values)[0] / alpha_req(exact)[0] - 1
            found.append({"n x d": f"{n} x {d}", **row, **{name: abs(float(e)) for name, e in errors.items()}})
    return Section(
        "Spectrum of n x d",
        "float32 features whose covariance decays as 1/i. Ours is what a measurement does: batches of"
        f" {BATCH} rows into `Moments` (`Rows` where n <= d), then the centred *and* the uncentred spectrum in"
        " float64; all others give the centred one alone. Peak memory is beyond the features themselves, which ours"
        " does not need whole where n > d. Errors are against the float64 singular values. PCA runs on the CPU.",
        found,
    )


def power_law_rows(n: int, d: int) -> Tensor:
    """Return float32 rows whose covariance decays as 1/i, as hidden states' does, with a mean."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1).float() ** -0.5
    return torch.randn(n, d, generator=generator) * scale + 1.0


def ours(rows_nd: Tensor) -> Tensor:
    """Feed the store of a measurement batch by batch, and solve."""
    n, d = rows_nd.shape
    store = Rows(d) if n <= d else Moments(d, rows_nd.device)
    for batch_bd, origin_b in zip(rows_nd.split(BATCH), torch.arange(n).split(BATCH), strict=True):
        store.update(batch_bd, origin_b)
    return spectrum_of(store).eigenvalues


def centred_alone(rows_nd: Tensor) -> Tensor:
    """Solve the smaller Gram matrix of the centred rows at once."""
    centred_nd = rows_nd.double()
    centred_nd -= centred_nd.mean(0)
    n, d = rows_nd.shape
    gram = centred_nd @ centred_nd.T if n <= d else centred_nd.T @ centred_nd
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)[: n - 1] / (n - 1)


def singular(rows_nd: Tensor, dtype: torch.dtype) -> Tensor:
    """Take the singular values of the centred rows."""
    rows_nd = rows_nd.to(dtype)
    values = torch.linalg.svdvals(rows_nd - rows_nd.mean(0)).square() / (len(rows_nd) - 1)
    return values[: len(rows_nd) - 1]


def pca(rows_nd: Tensor) -> Tensor:
    """Do what the official code of Li et al. 2025 does."""
    from sklearn.decomposition import PCA

    variance = PCA(svd_solver="full").fit(rows_nd.cpu().numpy()).explained_variance_
    return torch.from_numpy(variance)[: len(rows_nd) - 1].double()


#: Each from rows (n, d) to the descending eigenvalues of their covariance.
METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    OURS: ours,
    "float64 Gram matrix, centred alone": centred_alone,
    "svdvals float32": partial(singular, dtype=torch.float32),
    EXACT: partial(singular, dtype=torch.float64),
    "scikit-learn full PCA": pca,
}
