"""Round-off is that of the arithmetic behind the states, whatever dtype they are handed over in.

The models' true states lie in eight directions; what float64 would give is exactly zero in all others.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.record import GeometryRecord

D, RANK = 64, 8
BF16 = torch.bfloat16
CALL = lambda module, ids_bt, mask_bt: module(ids_bt)


def in_few_directions(blocks: int, seed: int = 0) -> LlamaForCausalLM:
    """What enters the stream of states, and what every block adds to it, lies in the same eight directions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=D, intermediate_size=2 * D, num_hidden_layers=blocks, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    basis, _ = torch.linalg.qr(torch.randn(D, RANK))
    onto = basis @ basis.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.randn(512, D) @ onto)
        for block in model.model.layers:
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.copy_(onto @ torch.randn(weight.shape) / weight.shape[1] ** 0.5)
    return model.eval()


def measured(model: nn.Module, n: int = 256, **settings: Any) -> GeometryRecord:
    ids_nt = torch.randint(0, 512, (n, 20), generator=torch.Generator().manual_seed(1))
    monitor = GeometryMonitor(
        ProbeSet.from_token_ids(ids_nt), **{"alpha_window": (2, 20), "on_error": "raise"} | settings
    )
    (record,) = monitor.measure(model, 0)
    return record


class Computes(nn.Module):
    """Weights in float32, and arithmetic inside in bfloat16: by an autocast of its own, or by a cast."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = in_few_directions(2).model, how
        self.out = nn.Identity()

    def forward(self, ids_bt: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16) if self.how == "autocast" else nullcontext():
            states = self.inner(input_ids=ids_bt).last_hidden_state
            return self.out(states.to(BF16) if self.how == "cast" else states)


class Quantised(nn.Module):
    """Stands for a layer of bitsandbytes: weights of four bits in bytes, products in bfloat16, states in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.compute_dtype = in_few_directions(2).model, BF16
        self.inner.to(BF16)
        for parameter in self.inner.parameters():
            parameter.requires_grad_(False)
        self.whole = [p.data.float() for p in self.inner.parameters()]
        for parameter in self.inner.parameters():
            parameter.data = parameter.data.to(torch.uint8)

    def forward(self, ids_bt: Tensor) -> Tensor:
        bytes_ = [p.data for p in self.inner.parameters()]
        for parameter, value in zip(self.inner.parameters(), self.whole, strict=True):
            parameter.data = value.to(BF16)
        states: Tensor = self.inner(input_ids=ids_bt).last_hidden_state.float()
        for parameter, value in zip(self.inner.parameters(), bytes_, strict=True):
            parameter.data = value
        return states


@pytest.mark.parametrize("n", [D + 1, 256])
@pytest.mark.parametrize("positions", ["last", 4, "mean"])
@pytest.mark.parametrize("blocks", [1, 4, 16])
@pytest.mark.parametrize("how", ["fp32", "autocast", "bf16 autocast of ours", "bf16 weights"])
def test_directions_that_rounding_alone_fills_have_no_alpha(how: str, blocks: int, positions: Any, n: int) -> None:
    model = in_few_directions(blocks)
    if how == "bf16 weights":
        model = model.to(BF16)
    precision = "bf16" if how == "bf16 autocast of ours" else "training"
    with torch.autocast("cpu", BF16) if how == "autocast" else nullcontext():
        record = measured(model, n, positions=positions, precision=precision)
    assert record.metrics["alpha_req"] is None
    assert record.reasons["alpha_req"].startswith("ranks 2 to 20 reach past the rank ")
    wanted = measured(in_few_directions(blocks), n, positions=positions).metrics["rankme"]
    assert record.metrics["rankme"] == pytest.approx(wanted, rel=2e-2)


@pytest.mark.parametrize("positions", ["last", "mean"])
@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_arithmetic_that_a_model_chooses_itself_counts(how: str, positions: Any) -> None:
    record = measured(Computes(how), module="out", forward=CALL, positions=positions)
    assert record.metrics["alpha_req"] is None


def test_quantised_layers_are_as_fine_as_what_they_compute_in() -> None:
    model = Quantised()
    record = measured(model, module="", forward=CALL)
    assert record.metrics["alpha_req"] is None


def test_a_layer_of_jackknifed_rows_is_judged_alike() -> None:
    with torch.autocast("cpu", BF16):
        record = measured(in_few_directions(2), intervals=True)
    assert record.metrics["alpha_req"] is None
    assert "alpha_req" not in record.intervals
    assert "rankme" in record.intervals


@pytest.mark.parametrize("positions", ["last", "mean"])
def test_what_stands_above_rounding_keeps_its_alpha(positions: Any) -> None:
    """The same model in all directions: bfloat16 moves α by less than a hundredth."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=D, intermediate_size=2 * D, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    wanted = measured(model, positions=positions).metrics["alpha_req"]
    with torch.autocast("cpu", BF16):
        under = measured(model, positions=positions).metrics["alpha_req"]
    low = measured(model.to(BF16), positions=positions).metrics["alpha_req"]
    assert [under, low] == pytest.approx([wanted] * 2, rel=1e-2)
