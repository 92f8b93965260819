"""Points of the published pretraining curves (Li et al. 2025, arXiv 2509.23024), and noisy samples of them.

`python tests/published_curves.py` counts in how many of 1,000 draws the phases come out right.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geomcallbacks.phases import find_phases

Points = list[tuple[float, float]]
SIGMA = 0.1
SAMPLES = 60

#: (tokens, RankMe) and (tokens, α) read off figures 2 and 3: values ±2 %, places ±10 %. Pythia's first point is step 8,
#: of 2,097,152 tokens a step. Troughs are read without their place: here where α is largest, before the rise's next
#: point. Where a range is given for a place (2.8B's and OLMo's peak, OLMo's trough), the curve is level over it.
_STEP_8 = 8 * 2_097_152
CURVES: dict[str, tuple[Points, Points]] = {
    "Pythia-1B": (
        [(_STEP_8, 395), (2.7e8, 34), (1.07e9, 125), (2.4e10, 815), (3e11, 280)],
        [(_STEP_8, 0.64), (2.7e8, 1.57), (2.4e10, 0.69), (3e11, 0.95)],
    ),
    "Pythia-1.4B": (
        [(_STEP_8, 383), (2.7e8, 21), (1.07e9, 85), (2.4e10, 805), (3e11, 368)],
        [(_STEP_8, 0.63), (2.7e8, 1.67), (2.4e10, 0.69), (3e11, 0.95)],
    ),
    "Pythia-2.8B": (
        [(_STEP_8, 430), (5.4e8, 18), (1.07e9, 68), (2e10, 832), (3e10, 832), (3e11, 402)],
        [(_STEP_8, 0.64), (5.4e8, 1.96), (2.5e10, 0.70), (3e11, 0.97)],
    ),
    "Pythia-6.9B": (
        [(_STEP_8, 622), (5.4e8, 15), (1.07e9, 33), (5e10, 803), (3e11, 338)],
        [(_STEP_8, 0.71), (5.4e8, 1.82), (5e10, 0.73), (3e11, 0.96)],
    ),
    "Pythia-12B": (
        [(_STEP_8, 724), (5.4e8, 11), (1.07e9, 28), (4.5e10, 800), (3e11, 285)],
        [(_STEP_8, 0.71), (5.4e8, 2.15), (4.5e10, 0.73), (3e11, 0.98)],
    ),
    "OLMo-2-7B": (
        [(4e8, 165), (6.5e8, 75), (2.5e9, 150), (4e10, 1040), (6e10, 1040), (1e12, 330), (2e12, 330), (4e12, 430)],
        [(4e8, 1.06), (2.5e9, 1.46), (1e10, 0.66), (5.9e10, 0.70), (2.3e12, 1.33), (4e12, 1.18)],
    ),
}
THREE = ["warm-up", "entropy-seeking", "compression-seeking"]
PHASES = {name: [*THREE, "entropy-seeking"] if name == "OLMo-2-7B" else THREE for name in CURVES}


def peak(points: Points) -> float:
    """Where a curve is highest; the geometric middle where it is level there."""
    top = [place for place, value in points if value == max(value for _, value in points)]
    return math.sqrt(top[0] * top[-1])


def interpolate(points: Points, tokens_n: np.ndarray) -> np.ndarray:
    """Log-linear interpolation: ln value over ln tokens."""
    places, values = np.log(np.array(points, dtype=float)).T
    return np.exp(np.interp(np.log(tokens_n), places, values))


def even_in_log(first: float, last: float) -> np.ndarray:
    """Samples at equal ratios."""
    return np.geomspace(first, last, SAMPLES)


def as_scheduled(first: float, last: float) -> np.ndarray:
    """Samples as `Schedule()` places a run's measurements: 8 a decade, and evenly from where that is denser. It has 50
    even parts, of which the first few are not used; here there are as many as give 60 samples in all.
    """
    ratio = 10 ** (1 / 8)
    for parts in range(2, SAMPLES):
        every, steps = last / parts, [first]
        while steps[-1] * ratio * (ratio - 1) < every:
            steps.append(steps[-1] * ratio)
        steps += [every * k for k in range(1, parts + 1) if every * k > steps[-1]]
        if len(steps) == SAMPLES:
            return np.array(steps)
    raise ValueError(f"no schedule of {SAMPLES} samples from {first} to {last}")


GRIDS: dict[str, Callable[[float, float], np.ndarray]] = {"even in log": even_in_log, "as scheduled": as_scheduled}


@dataclass
class Count:
    """How many of the draws came out right.

    Attributes:
        draws: in all.
        named: with the right phases in the right order.
        peaked: of these, with the RankMe peak within 0.3 decade.
        covered: of these, with the peak within the boundary's interval.
        alpha: phases, of these draws, in which α moves opposite to RankMe.
    """

    draws: int = 0
    named: int = 0
    peaked: int = 0
    covered: int = 0
    alpha: int = 0


def count(name: str, grid: str, draws: int, seed: int = 0) -> Count:
    """Draw noisy samples of a published curve, and count."""
    generator = np.random.default_rng([seed, sorted(CURVES).index(name)])
    rankme, alpha = CURVES[name]
    tokens_n = GRIDS[grid](rankme[0][0], rankme[-1][0])
    clean, clean_alpha, top = interpolate(rankme, tokens_n), interpolate(alpha, tokens_n), peak(rankme)
    found = Count()
    for _ in range(draws):
        noise, noise_alpha = np.exp(SIGMA * generator.standard_normal((2, SAMPLES)))
        phases = find_phases(tokens_n, clean * noise, clean_alpha * noise_alpha)
        found.draws += 1
        if [phase.name for phase in phases] == PHASES[name]:
            found.named += 1
            found.peaked += abs(math.log10(phases[1].end / top)) <= 0.3
            low, high = phases[1].end_interval
            found.covered += low <= top <= high
            found.alpha += sum(phase.agrees is True for phase in phases)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    print(f"{'curve':12} {'samples':13} right phases, peak within 0.3 decade; of these: peak in interval, α opposite")
    for name in CURVES:
        for grid in GRIDS:
            found = count(name, grid, draws)
            cover, alpha = found.covered / found.named, found.alpha / found.named / len(PHASES[name])
            print(f"{name:12} {grid:13} {found.named / draws:.1%} {found.peaked / draws:.1%}; {cover:.0%} {alpha:.0%}")


if __name__ == "__main__":
    main()
