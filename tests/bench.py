"""Times of our spectrum beside what else there is, both in one run on one machine: `make bench`.

Prints the median of several rounds, taken in turn, and the ratio to ours; writes nothing.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from geomcallbacks.metrics import rankme
from geomcallbacks.spectrum import spectrum_of_rows

ROUNDS = 7
SHAPES = [(2048, 768), (2048, 2048), (768, 2048)]


def main() -> None:
    """Time every shape."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}; medians of {ROUNDS} rounds in turn")
    print(f"{'n x d':>12} {'method':<28} {'ms':>8} {'against ours':>13} {'RankMe error':>13}")
    for n, d in SHAPES:
        rows_nd = power_law_rows(n, d).to(device)
        times = in_turn({name: partial(method, rows_nd) for name, method in METHODS.items()}, device)
        exact = rankme(METHODS["svdvals float64 (centred)"](rows_nd))
        for name, method in METHODS.items():
            error = abs(rankme(method(rows_nd)) / exact - 1).item()
            ratio = times[name] / times["ours (both spectra)"]
            print(f"{f'{n} x {d}':>12} {name:<28} {1e3 * times[name]:8.1f} {ratio:12.2f}x {error:13.1e}")


def power_law_rows(n: int, d: int) -> torch.Tensor:
    """float32 rows whose covariance decays as 1/i, as hidden states' does, with a mean."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1).float() ** -0.5
    return torch.randn(n, d, generator=generator) * scale + 1.0


def ours(rows_nd: torch.Tensor) -> torch.Tensor:
    """What a measurement takes: eigenvalues of the centred covariance, singular values of the uncentred rows."""
    return spectrum_of_rows(rows_nd).eigenvalues


def svdvals(rows_nd: torch.Tensor, dtype: torch.dtype, both: bool = False) -> torch.Tensor:
    """The same eigenvalues from the singular values of the centred rows; if `both`, the uncentred ones as well."""
    rows_nd = rows_nd.to(dtype)
    if both:
        torch.linalg.svdvals(rows_nd)
    return torch.linalg.svdvals(rows_nd - rows_nd.mean(0)).square() / (len(rows_nd) - 1)


METHODS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ours (both spectra)": ours,
    "svdvals float64 (both)": partial(svdvals, dtype=torch.float64, both=True),
    "svdvals float64 (centred)": partial(svdvals, dtype=torch.float64),
    "svdvals float32 (centred)": partial(svdvals, dtype=torch.float32),
}


def in_turn(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median seconds of each call, one round of all after another, so that a noisy machine is noisy for all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(ROUNDS + 1):
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
