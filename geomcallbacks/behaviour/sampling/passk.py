"""pass@k: how likely one of k samples is correct."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct: 1 − C(n−c, k)/C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1, computed as their product, which stays within 0 and 1 where the
    binomials overflow.

    Args:
        samples: n, samples drawn.
        correct: c, how many of them are correct.
        k: samples allowed, at most n.

    Raises:
        ValueError: the numbers contradict each other.
    """
    if k < 1:
        raise ValueError(f"k={k}: give a positive number of samples")
    if k > samples:
        raise ValueError(f"k={k} is more than the samples={samples} drawn: draw more, or give a smaller k")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct} is not within 0 and samples={samples}")
    if samples - correct < k:
        return 1.0
    missed = 1.0
    for i in range(samples - correct + 1, samples + 1):
        missed *= 1.0 - k / i
    return 1.0 - missed


def pass_at_k_curve(correct_p: Sequence[int], samples: int, ks: Iterable[int]) -> dict[int, float]:
    """pass@k of a set of problems: the mean of `pass_at_k` over them, by k.

    Args:
        correct_p: for each problem, how many of its samples are correct.
        samples: samples drawn for each problem.
        ks: the k to estimate, each at most `samples`.

    Raises:
        ValueError: there are no problems, or the numbers contradict each other.
    """
    if not len(correct_p):
        raise ValueError("correct_p is empty: give the correct samples of at least one problem")
    return {k: sum(pass_at_k(samples, int(c), k) for c in correct_p) / len(correct_p) for k in ks}
