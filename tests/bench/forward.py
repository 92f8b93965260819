"""The probe's forward pass: ours beside `output_hidden_states=True` with logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, Olmo2Config, PretrainedConfig, PreTrainedModel

from bench.table import Section
from bench.timing import in_turn, rows_of
from geomcallbacks import ProbeSet
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader

OURS = "ours"


@dataclass
class Case:
    """A model and the size of its probe."""

    name: str
    config: PretrainedConfig
    rows: int
    length: int
    batch: int


def cases(cuda: bool) -> list[Case]:
    """Pythia-160M and OLMo-2-1B by shape; on the CPU, few rows of them."""
    pythia = GPTNeoXConfig(
        vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )
    olmo = Olmo2Config(
        vocab_size=100352, hidden_size=2048, num_hidden_layers=16, num_attention_heads=16, intermediate_size=8192
    )
    names = "Pythia-160M shape", "OLMo-2-1B shape"
    sizes = [(2048, 512, 32)] * 2 if cuda else [(8, 512, 4), (2, 256, 2)]
    return [Case(*part, *size) for *part, size in zip(names, (pythia, olmo), sizes, strict=True)]


def forward(device: torch.device, chosen: list[Case], limit: float = 60.0) -> Section:
    """Time, memory and use of the device of both, for each model."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = 8192 if device.type == "cuda" else 3072
    square = torch.randn(size, size, device=device).to(dtype)
    section = Section(
        "Forward pass of a probe",
        f"Random weights in {str(dtype).removeprefix('torch.')}, the last token's state of every row. Naive:"
        " `output_hidden_states=True`, logits and cache as by default. Share of matmul: useful operations (2 x"
        " parameters outside embeddings and head x tokens, and causal attention; of the blocks that run and of tokens"
        f" that are no padding) a second, by those of a product of {size} x {size} matrices timed in the same turns."
        " Mixed lengths, evenly from a quarter of the longest, are compared with each other.",
    )
    for case in chosen:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(case.config, dtype=dtype).eval()
        for group, work in sides(model, case, device).items():
            calls = {name: call for name, (call, _) in work.items()}
            costs = in_turn({**calls, "matmul": lambda: square @ square}, device, limit=limit)
            rate = 2 * size**3 / median(costs.pop("matmul").seconds)
            for row in rows_of(costs, next(iter(calls))):
                share = work[row["method"]][1] / row["seconds"] / rate
                section.rows.append(
                    {"model": case.name, "probe": f"{case.rows} x {group}", **row, "share of matmul": share}
                )
            section.remarks.append(f"{case.name}, {case.rows} x {group}: matmul {rate / 1e12:.3g} TFLOP/s.")
        del model
    return section


def sides(
    model: PreTrainedModel, case: Case, device: torch.device
) -> dict[str, dict[str, tuple[Callable[[], Any], float]]]:
    """For a probe of equal and of mixed lengths: each side's call, and how many useful operations it does."""
    equal = probe(case, [case.length] * case.rows)
    lengths = torch.linspace(case.length / 4, case.length, case.rows).round().int().tolist()
    mixed = probe(case, lengths)
    third = len(model.base_model.layers) // 3
    whole, part = flops(model, equal), flops(model, equal, third)
    alike = {
        OURS: (partial(ours, Reader(model), equal, case.batch), whole),
        f"ours, layers={third}": (partial(ours, Reader(model, layers=third), equal, case.batch), part),
        "naive": (partial(naive, model, equal, case.batch, device), whole),
    }
    if device.type == "cuda":
        compiled = Reader(model, compile=True)
        alike["ours, compile=True"] = (partial(ours, compiled, equal, case.batch, one_width=True), whole)
    work = flops(model, mixed)
    unlike = {
        "ours, like lengths together": (partial(ours, Reader(model), mixed, case.batch), work),
        "ours, all padded to the longest": (partial(ours, Reader(model), mixed, case.batch, one_width=True), work),
    }
    return {str(case.length): alike, f"{lengths[0]}-{lengths[-1]}": unlike}


def probe(case: Case, lengths: list[int]) -> ProbeSet:
    """Random tokens in rows of these lengths, in no order of length."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    vocabulary = case.config.vocab_size
    return ProbeSet.from_token_ids(
        [torch.randint(3, vocabulary, (lengths[i],), generator=generator).tolist() for i in order]
    )


def ours(reader: Reader, rows: ProbeSet, batch: int, one_width: bool = False) -> list[Tensor]:
    """As a measurement reads the probe."""
    with leave_no_trace(reader.called, eager=not reader._compiled):
        batches = rows.batches(batch, one_width=one_width)
        return [feature_md for part in batches for feature_md in reader.read(part, "last")[0].values()]


@torch.no_grad()
def naive(model: PreTrainedModel, rows: ProbeSet, batch: int, device: torch.device) -> list[Tensor]:
    """As scripts do it: all hidden states and logits, then the last token of the last layer."""
    found = []
    for start in range(0, len(rows), batch):
        part = rows.batch(torch.arange(start, min(start + batch, len(rows))))
        output = model(part.input_ids_bt.to(device), attention_mask=part.mask_bt.to(device), output_hidden_states=True)
        last_b = part.lengths_b.to(device) - 1
        found.append(output.hidden_states[-1][torch.arange(len(last_b), device=device), last_b])
    return found


def flops(model: PreTrainedModel, rows: ProbeSet, layers: int | None = None) -> float:
    """Operations of the first blocks, all of them if None, on the real tokens of a probe."""
    blocks = list(model.base_model.layers)[:layers]
    parameters = sum(p.numel() for block in blocks for p in block.parameters())
    attention = 2 * len(blocks) * model.config.hidden_size * rows.lengths_n.double().square().sum()
    return float(2 * parameters * rows.lengths_n.sum() + attention)
