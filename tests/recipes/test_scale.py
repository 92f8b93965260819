"""`recipes/scale.py`: its operations against PyTorch's own count, its rows worked by hand, its bias by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scale
import torch
from scipy.stats import entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Olmo2Config

OLMO_1B, OLMO_7B, OLMO_32B, LLAMA_405B = scale.MODELS


@pytest.mark.parametrize(
    ("model", "billions"),  # as each model's card counts them
    [(OLMO_1B, 1.48), (OLMO_7B, 7.30), (OLMO_32B, 32.2), (LLAMA_405B, 405.9)],
)
def test_parameters_are_those_published(model: scale.Model, billions: float) -> None:
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_operations_are_those_that_a_forward_does() -> None:
    """PyTorch counts what a small OLMo-2 of Transformers does; it counts attention without its mask, twice of ours."""
    shape = scale.Model("", 64, 2, 96, 0.5, 50, mfu=1.0, tokens=1.0, updates=1)
    config = Olmo2Config(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, eos_token_id=None, pad_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(input_ids=torch.zeros(2, scale.LENGTH, dtype=torch.long), use_cache=False)
    masked_away = 2 * 512 * 512 * 64 * 2 * 2  # half of two products of 512 x 512 x 64, in two layers, of two rows
    rotary = counter.get_total_flops() - masked_away - shape.forward_flops(1024)
    assert 0 <= rotary < 0.001 * shape.forward_flops(1024)
    norms = 2 * (2 * 64 + 64 + 32) + 64
    assert shape.parameters == sum(values.numel() for values in model.parameters()) - norms


def test_rows_by_hand() -> None:
    """Of 64 GPUs, OLMo-2-1B replicated, n = 8,192: four batches of 32 rows on each, a sixteenth of the 2,048 timed.

    67,108,864 parameters a block, 1,484,783,616 with embedding and head: 6 of these for each of 2.1 million tokens at
    0.4 of 989e12 a GPU. A solve took 27 ms, of which the product of 10,000 rows 1.25 ms. Moments of 2,048 x 2,048
    doubles, 33.6 MB, cross at 200 GB/s twice: 0.34 ms. Llama-3.1-405B on 512 GPUs, n = 65,536, gathers 406e9
    parameters of two bytes for each of four batches; solves of 16,384 take 64 times those of 4,096.
    """
    cost = scale.cost_of(OLMO_1B, 64, 8192)
    assert (cost.forward, cost.gather) == (pytest.approx(0.4875), 0.0)
    assert cost.solve == pytest.approx(0.05150, rel=1e-3)
    assert cost.measurement == pytest.approx(0.53933, rel=1e-4)
    assert cost.update == pytest.approx(0.73892, rel=1e-4)
    assert cost.interval == 730  # 0.53933 s are a thousandth of 729.9 updates
    assert cost.memory == pytest.approx(1.2080e9, rel=1e-3)  # 1.07e9 of states, four matrices of 33.6e6
    large = scale.cost_of(LLAMA_405B, 512, 65_536)
    assert large.gather == pytest.approx(4 * 2 * 405.85e9 / 200e9, rel=1e-3)
    assert large.solve == pytest.approx(64 * 2 * (0.126 - 2 * 15_000 * 4096**2 / 67e12), rel=1e-6)
    few = scale.cost_of(LLAMA_405B, 4096, 4096)
    assert few.solve == pytest.approx(large.solve / 64)
    assert few.memory < large.memory


def test_more_gpus_share_batches_then_rows() -> None:
    def forward(gpus: int, n: int = 16_384) -> float:
        return scale.cost_of(OLMO_7B, gpus, n).forward

    assert forward(8) == pytest.approx(64 * forward(512))
    assert forward(512) == pytest.approx(8 * forward(4096))  # with one batch on each, it is cut smaller
    assert forward(16_384, 4096) == forward(4096, 4096)  # with one row on each, no further


@pytest.mark.parametrize("d", [64, 256])
@pytest.mark.parametrize("factor", [0.25, 1, 4])
def test_rankme_of_a_sample_is_that_of_drawn_rows(d: int, factor: float) -> None:
    """The deterministic equivalent against Gaussian rows, not centred since their mean is zero."""
    generator, n = np.random.default_rng(0), int(factor * d)
    eigenvalues = 1.0 / np.arange(1, d + 1)
    drawn = []
    for _ in range(20):
        values = np.linalg.svd(generator.standard_normal((n, d)) * eigenvalues**0.5, compute_uv=False) ** 2
        drawn.append(np.exp(entropy(values)))
    assert scale.expected_rankme(eigenvalues, n) == pytest.approx(np.mean(drawn), rel=0.02)


def test_rankme_of_all_rows_is_the_true_one() -> None:
    assert scale.expected_rankme(np.array([0.5, 0.25, 0.25]), 10**9) == pytest.approx(2**1.5, rel=1e-4)
    assert scale.expected_rankme(np.ones(50), 10**9) == pytest.approx(50.0, rel=1e-4)


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "expected_rankme", lambda eigenvalues_d, n: float(min(n, 1000)))
    scale.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[6][:4] == ["OLMo-2-1B", "8,192", "8", "5.9 s"]
    assert sum(bool(row) for row in rows) == 2 * (2 + 14) + 2 + 4
