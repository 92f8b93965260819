"""The arithmetic of `scale.py` held against real measurements of small models on this machine.

    python recipes/scale_check.py        # a minute on one CPU core (make scale)

Three rates are measured without any code of the package: the forward of one model, a float64 product, and two float64
solves. From these and `scale.py`'s operation counts the time of `GeometryMonitor.measure` is predicted for other
models, and compared.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import scale
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, PreTrainedModel

from geomcallbacks import GeometryMonitor, ProbeSet

VOCABULARY, LENGTH = 1024, 32
REFERENCE = (256, 4)  # d, layers of the model whose forward is timed
#: n, d, layers
CASES = ((1024, 256, 2), (1024, 256, 8), (256, 512, 4), (1024, 512, 2), (768, 384, 6), (2048, 128, 4))


def network(d: int, layers: int) -> tuple[PreTrainedModel, scale.Model]:
    """A random OLMo-2-shaped model in evaluation mode, and its shape."""
    config = Olmo2Config(
        vocab_size=VOCABULARY,
        hidden_size=d,
        intermediate_size=4 * d,
        num_hidden_layers=layers,
        num_attention_heads=d // 32,
        eos_token_id=None,
        pad_token_id=None,
        max_position_embeddings=LENGTH,
    )
    shape = scale.Model("", d, layers, 4 * d, 1.0, VOCABULARY, 1.0, 1.0, 1)
    return AutoModelForCausalLM.from_config(config).eval(), shape


def median_seconds(call: Callable[[], object], rounds: int = 5) -> float:
    """Of several calls behind one that warms up: the processor's, not the clock's, since others may use the machine."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds[1:])


@torch.no_grad()
def pieces() -> tuple[float, float, Callable[[int], float]]:
    """Operations a second of forward and float64 product, and seconds of one solve by its size."""
    model, shape = network(*REFERENCE)
    ids_bt = torch.randint(VOCABULARY, (scale.BATCH, LENGTH))
    taken = median_seconds(lambda: model.model(input_ids=ids_bt, use_cache=False))
    forward = shape.forward_flops(ids_bt.numel(), LENGTH) / taken
    rows_nd = torch.randn(scale.BATCH, 256, dtype=torch.float64)
    product = 2 * rows_nd.numel() * 256 / median_seconds(lambda: rows_nd.T @ rows_nd, 50)
    grams = {d: torch.cov(torch.randn(d, 2 * d, dtype=torch.float64)) for d in (128, 512)}
    solves = {d: median_seconds(lambda gram=gram: torch.linalg.eigvalsh(gram)) for d, gram in grams.items()}
    power = math.log(solves[512] / solves[128]) / math.log(4)
    return forward, product, lambda size: solves[128] * (size / 128) ** power


def main() -> None:
    """Print predicted and measured seconds of each case."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    forward, product, solve = pieces()
    print(f"forward {forward / 1e9:.1f} GFLOP/s, float64 product {product / 1e9:.1f}, solve of 256 {solve(256):.3g} s")
    print("| n | d | layers | predicted | measured | ratio |", "|---|---|---|---|---|---|", sep="\n")
    for n, d, layers in CASES:
        model, shape = network(d, layers)
        size = min(n, d)
        predicted = shape.forward_flops(n * LENGTH, LENGTH) / forward
        predicted += 2 * n * d * size / product + scale.SOLVES * solve(size)
        probe = ProbeSet.from_token_ids(torch.randint(VOCABULARY, (n, LENGTH)))
        watch = GeometryMonitor(probe, alpha_window=(4, 100), spectra=False)
        measured = median_seconds(lambda watch=watch, model=model: watch.measure(model, 0), 3)
        print(f"| {n:,} | {d} | {layers} | {predicted:.2f} s | {measured:.2f} s | {measured / predicted:.2f} |")


if __name__ == "__main__":
    main()
