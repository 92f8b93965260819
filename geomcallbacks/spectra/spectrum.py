"""From moments or rows to spectra, by a symmetric float64 eigensolve of the smaller Gram matrix.

A float64 solve of the Gram matrix of *centred* features costs a fraction of an SVD of the features and, in float64,
loses nothing that features in float32 or bfloat16 ever had.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomcallbacks.reading.device import float64_device
from geomcallbacks.spectra.moments import Moments, Rows

#: Relative error of a float64 mean, generously: far below what features in float32 resolve.
_ROUND_OFF = 1e-14
#: Below this a float64 product has lost digits to its smallest exponent. Squares of float32's least are above 1e-90.
_UNDERFLOW = torch.finfo(torch.float64).tiny / torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Spectrum:
    """What the metrics are computed from.

    Attributes:
        eigenvalues: (min(n − 1, d),) descending, float64; of the centred covariance, normalised by n − 1. Empty for
            one row, all zero for rows that are equal.
        singular_values: (min(n, d),) descending, float64; of the uncentred feature matrix.
        mean_norm: 0-d, the Euclidean norm of the mean row.
        floor: 0-d, the eigenvalue up to which there may be nothing but the rounding with which features were computed.
        n: rows.
    """

    eigenvalues: Tensor
    singular_values: Tensor
    mean_norm: Tensor
    floor: Tensor
    n: int


def spectrum_of(store: Moments | Rows) -> Spectrum:
    """Return the spectrum of everything a store has seen: at least one row."""
    if isinstance(store, Rows):
        rows_nd, _ = store.finish()
        return spectrum_of_rows(rows_nd, store.eps)
    n, mean_d, m2_dd = store.finish()
    uncentred_dd = torch.addr(m2_dd, mean_d, mean_d, alpha=n)
    floor = _floor(uncentred_dd.diagonal() / n, store.eps)
    return _spectrum(m2_dd, uncentred_dd, mean_d, floor, n)


def spectrum_of_rows(rows_nd: Tensor, eps: float | None = None) -> Spectrum:
    """Return the spectrum of rows (n, d), any floating dtype, n at least one.

    Args:
        rows_nd: the features.
        eps: their relative error. None: that of their dtype.

    Raises:
        ValueError: they are no rows of real numbers, or not finite, or so large that float64 does not hold a square.
    """
    if rows_nd.ndim != 2 or rows_nd.numel() == 0 or not rows_nd.is_floating_point():
        raise ValueError(f"rows_nd of shape {tuple(rows_nd.shape)} is {rows_nd.dtype}: give features (n, d) of floats")
    eps = torch.finfo(rows_nd.dtype).eps if eps is None else eps
    rows_nd = rows_nd.to(float64_device(rows_nd.device)).to(torch.float64)
    mean_d = rows_nd.mean(0)
    floor = _floor(rows_nd.square().mean(0), eps)
    return _spectrum(*_smaller_grams(rows_nd - mean_d, mean_d), mean_d, floor, len(rows_nd))


def _floor(mean_square_d: Tensor, eps: float) -> Tensor:
    """Return four times the variance eps² x²/12 that rounding gives a typical column x, the edge of noise at n = d.

    Typical is the median column, since a few outlier columns put their larger rounding into as few directions.
    """
    return mean_square_d.median() * eps**2 / 3


def _spectrum(centred: Tensor, uncentred: Tensor, mean_d: Tensor, floor: Tensor, n: int) -> Spectrum:
    """Return the spectrum from the Gram matrices, (d, d) or (n, n), of the centred and of the uncentred rows."""
    mean_norm = mean_d.norm()
    eigenvalues = _descending_eigenvalues(centred)[: n - 1] / max(n - 1, 1)
    # Equal rows leave the round-off of their own mean behind, which is no variance.
    varies = eigenvalues.sum() > ((mean_norm * _ROUND_OFF) ** 2).clamp_min(_UNDERFLOW)
    squared = _descending_eigenvalues(uncentred)[:n]
    # The root lifts round-off of 1e-16 to 1e-8, enough of it to count in an entropy: below the solver's error is zero.
    error = squared[0] * len(squared) ** 0.5 * torch.finfo(squared.dtype).eps
    return Spectrum(
        eigenvalues=eigenvalues * varies,
        singular_values=torch.where(squared > error, squared, 0.0).sqrt(),
        mean_norm=mean_norm,
        floor=floor,
        n=n,
    )


def _smaller_grams(centred_nd: Tensor, mean_d: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix, (d, d) or (n, n), of the centred rows, and that of the rows with their mean added back.

    The second costs no second product: it differs from the first by terms of rank one.
    """
    n, d = centred_nd.shape
    if n >= d:
        gram_dd = centred_nd.T @ centred_nd
        return gram_dd, torch.addr(gram_dd, mean_d, mean_d, alpha=n)
    gram_nn = centred_nd @ centred_nd.T
    along_n = centred_nd @ mean_d
    return gram_nn, gram_nn + along_n[:, None] + along_n[None, :] + mean_d @ mean_d


def _descending_eigenvalues(symmetric: Tensor) -> Tensor:
    if symmetric.device.type == "cpu" and not bool(torch.isfinite(symmetric).all()):  # elsewhere a look would wait
        raise ValueError("the features are not finite, or above 1e150, so that float64 does not hold their squares")
    try:
        ascending: Tensor = torch.linalg.eigvalsh(symmetric)
    except RuntimeError:
        if symmetric.device.type == "cpu":
            raise
        # cuSOLVER gives up on ill-conditioned matrices that LAPACK still solves.
        ascending = torch.linalg.eigvalsh(symmetric.cpu()).to(symmetric.device)
    # A Gram matrix has no negative eigenvalue; what the solver returns below zero is round-off.
    return ascending.flip(0).clamp_min(0.0)
