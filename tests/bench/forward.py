"""The probe's forward pass: ours beside `output_hidden_states=True` with logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, Olmo2Config, PretrainedConfig, PreTrainedModel

from bench.section import Section
from bench.timing import in_turn, rows_of
from geomcallbacks import ProbeSet
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader


@dataclass(frozen=True)
class Case:
    """A model and the size of its probe."""

    name: str
    config: PretrainedConfig
    rows: int
    length: int
    batch: int


def cases(cuda: bool) -> list[Case]:
    """Return Pythia-160M and OLMo-2-1B by shape; on the CPU, few rows of them."""
    pythia = GPTNeoXConfig(
        vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )
    olmo = Olmo2Config(
        vocab_size=100352, hidden_size=2048, num_hidden_layers=16, num_attention_heads=16, intermediate_size=8192
    )
    sizes = [(2048, 512, 32)] * 2 if cuda else [(8, 512, 4), (2, 256, 2)]
    return [Case("Pythia-160M shape", pythia, *sizes[0]), Case("OLMo-2-1B shape", olmo, *sizes[1])]


def forward(device: torch.device, chosen: list[Case], limit: float = 60.0) -> Section:
    """Measure time, memory and use of the device of both, for each model."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = 8192 if device.type == "cuda" else 3072
    square = torch.randn(size, size, device=device).to(dtype)
    rows, remarks = [], []
    for case in chosen:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(case.config, dtype=dtype).eval()
        third = len(model.base_model.layers) // 3
        mixed = torch.linspace(case.length / 4, case.length, case.rows).round().int().tolist()
        equal = [case.length] * case.rows
        for name, lengths in {f"{case.length}": equal, f"{mixed[0]}-{case.length}": mixed}.items():
            given = probe(case, lengths)
            calls = {
                "ours": partial(ours, Reader(model), given, case.batch),
                f"ours, layers={third}": partial(ours, Reader(model, layers=third), given, case.batch),
                "naive": partial(naive, model, given, case.batch, device),
                "matmul": lambda: square @ square,
            }
            costs = in_turn(calls, device, limit=limit)
            rate = 2 * size**3 / median(costs.pop("matmul").seconds)
            for row in rows_of(costs, "ours"):
                work = flops(model, given, third if "layers" in row["method"] else None)
                share = {"share of matmul": work / row["seconds"] / rate}
                rows.append({"model": case.name, "probe": f"{case.rows} x {name}"} | row | share)
            remarks.append(f"{case.name}, {case.rows} x {name}: matmul {rate / 1e12:.3g} TFLOP/s.")
        del model
    return Section(
        "Forward pass of a probe",
        f"Random weights in {str(dtype).removeprefix('torch.')}, the last token's state of every row. Naive:"
        " `output_hidden_states=True`, logits and cache as by default. Share of matmul: useful operations (2 x"
        " parameters outside embeddings and head x tokens, and causal attention; of the blocks that run and of tokens"
        f" that are no padding) a second, by those of a product of {size} x {size} matrices timed in the same turns."
        " Mixed lengths go evenly from a quarter of the longest.",
        rows,
        remarks,
    )


def probe(case: Case, lengths: list[int]) -> ProbeSet:
    """Return random tokens in rows of these lengths, in no order of length."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    vocabulary = case.config.vocab_size
    return ProbeSet.from_token_ids(
        [torch.randint(3, vocabulary, (lengths[i],), generator=generator).tolist() for i in order]
    )


def ours(reader: Reader, rows: ProbeSet, batch: int) -> list[Tensor]:
    """Read the probe as a measurement does."""
    with leave_no_trace(reader.whole):
        return [states for part in rows.batches(batch) for states in reader.read(part, "last")[0].values()]


@torch.no_grad()
def naive(model: PreTrainedModel, rows: ProbeSet, batch: int, device: torch.device) -> list[Tensor]:
    """Read it as scripts do: all hidden states and logits, then the last token of the last layer."""
    found = []
    for start in range(0, len(rows), batch):
        part = rows.batch(torch.arange(start, min(start + batch, len(rows))))
        output = model(part.input_ids_bt.to(device), attention_mask=part.mask_bt.to(device), output_hidden_states=True)
        last_b = part.lengths_b.to(device) - 1
        found.append(output.hidden_states[-1][torch.arange(len(last_b), device=device), last_b])
    return found


def flops(model: PreTrainedModel, rows: ProbeSet, layers: int | None = None) -> float:
    """Return the operations of the first blocks, all of them if None, on the real tokens of a probe."""
    blocks = list(model.base_model.layers)[:layers]
    parameters = sum(p.numel() for block in blocks for p in block.parameters())
    attention = 2 * len(blocks) * model.config.hidden_size * rows.lengths_n.double().square().sum()
    return float(2 * parameters * rows.lengths_n.sum() + attention)
