"""`recipes/scale.py`: a row of its table worked by hand, and its law of sample size against simulation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scale

OLMO_1B, OLMO_7B, OLMO_32B, LLAMA_405B = scale.MODELS


def rankme(spectrum_d: np.ndarray) -> float:
    shares_d = spectrum_d / spectrum_d.sum()
    return float(np.exp(-(shares_d * np.log(shares_d)).sum()))


@pytest.mark.parametrize(
    ("model", "billions"),  # as each model's card counts them
    [(OLMO_1B, 1.48), (OLMO_7B, 7.30), (OLMO_32B, 32.2), (LLAMA_405B, 405.9)],
)
def test_parameters_are_those_published(model: scale.Model, billions: float) -> None:
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_row_by_hand() -> None:
    """OLMo-2-1B, 8,192 rows of 512 tokens on 64 GPUs: four batches of 32 on each."""
    blocks = 16 * (4 * 2048**2 + 3 * 2048 * 8192)
    token = 2 * blocks + 16 * 2 * 512 * 2048  # under a causal mask each position sees half of the row
    # the measured forward took 7.8 s for 2,048 rows, so that the 128 rows of one GPU take a sixteenth
    cost = scale.measurement(OLMO_1B, 64, 8192)
    assert OLMO_1B.forward_flops(1) == token == 2_181_038_080
    assert cost.forward == pytest.approx(7.8 / 16)
    assert cost.gather == 0.0  # replicated
    assert cost.reduce == pytest.approx(2 * 8 * 2048**2 / 200e9)
    # 27 ms less the product of 10,000 rows, twice
    assert cost.solve == pytest.approx(2 * (0.027 - 2 * 10_000 * 2048**2 / 67e12))
    # 6 operations a parameter and token, at 0.4 of 989 TFLOP/s on each of 64 GPUs
    assert cost.update == pytest.approx(6 * (blocks + 2 * 100_352 * 2048) * 2.1e6 / (64 * 0.4 * 989e12))
    assert cost.interval == math.ceil((cost.forward + cost.reduce + cost.solve) / (0.001 * cost.update)) == 730


def test_the_measured_forward_was_no_plain_float32() -> None:
    assert 67e12 < scale.forward_rate() < 494e12


def test_twice_the_gpus_take_half_the_forward_while_there_are_batches() -> None:
    for gpus in (8, 16, 32, 64, 128):
        one, two = (scale.measurement(OLMO_7B, count, 16_384) for count in (gpus, 2 * gpus))
        assert two.forward == pytest.approx(one.forward / 2)
        assert two.solve == one.solve
    # with one batch on each, it is cut smaller; with one row on each, no further
    assert scale.measurement(OLMO_7B, 4096, 16_384).forward == pytest.approx(
        scale.measurement(OLMO_7B, 512, 16_384).forward / 8
    )
    assert scale.measurement(OLMO_7B, 16_384, 4096).forward == scale.measurement(OLMO_7B, 4096, 4096).forward


def test_solve_grows_with_the_cube_and_shrinks_with_few_rows() -> None:
    assert scale.solve_seconds(16_384) == pytest.approx(64 * scale.solve_seconds(4096))
    few, many = (scale.measurement(LLAMA_405B, 4096, n) for n in (4096, 65_536))
    assert few.solve == pytest.approx(many.solve / 64)
    assert few.memory < many.memory


def test_every_interval_keeps_to_a_thousandth() -> None:
    for model in scale.MODELS:
        for gpus in scale.GPUS:
            cost = scale.measurement(model, gpus, 4 * model.d, positions=8)
            assert cost.seconds <= 0.001 * cost.interval * cost.update
            longer = dataclasses.replace(cost, solve=cost.solve + 0.001 * cost.update)
            assert longer.interval == cost.interval + 1


@pytest.mark.parametrize("d", [64, 256])
@pytest.mark.parametrize("factor", [0.25, 0.5, 1, 2, 8])
def test_rankme_of_a_sample_is_that_of_drawn_rows(d: int, factor: float) -> None:
    """The deterministic equivalent against Gaussian rows, not centred since their mean is zero."""
    generator = np.random.default_rng(0)
    eigenvalues = scale.power_law(d)
    n = int(factor * d)
    drawn = [
        rankme(np.linalg.svd(generator.standard_normal((n, d)) * eigenvalues**0.5, compute_uv=False) ** 2)
        for _ in range(20)
    ]
    assert scale.expected_rankme(eigenvalues, n) == pytest.approx(np.mean(drawn), rel=0.02)


def test_rankme_of_all_rows_is_the_true_one() -> None:
    eigenvalues = scale.power_law(300)
    assert scale.expected_rankme(eigenvalues, 10**9) == pytest.approx(rankme(eigenvalues), rel=1e-4)
    assert scale.expected_rankme(np.ones(50), 10**9) == pytest.approx(50.0, rel=1e-4)
