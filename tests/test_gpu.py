"""On a CUDA device: the CPU's values, no more memory than the backbone needs, and few waits. See `make test-gpu`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import reference
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch.cuda finds none here"),
]


def monitor(probe: ProbeSet, **settings: Any) -> GeometryMonitor:
    return GeometryMonitor(probe, **{"alpha_window": tiny.WINDOW, "on_error": "raise"} | settings)


@pytest.mark.parametrize(("n", "d"), [(3000, 512), (512, 512), (300, 2048)], ids=["n>d", "n=d", "n<d"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_metrics_against_the_reference(n: int, d: int, dtype: torch.dtype) -> None:
    """Of features that stand in a table, a row for each token."""
    features_nd = torch.from_numpy(reference.features(n, d, mean=0.5)).to(dtype)
    model = torch.nn.Sequential(torch.nn.Embedding.from_pretrained(features_nd)).cuda()
    probe = ProbeSet.from_token_ids([[0, token] for token in range(n)])
    (record,) = monitor(probe, layers="0", alpha_window=(11, 100), batch_size=100).measure(model, 0)
    assert record.metrics == pytest.approx(reference.describe(features_nd.double().numpy(), (11, 100)), rel=1e-8)


@pytest.mark.parametrize("intervals", [False, True])
def test_measurement_against_the_cpu(intervals: bool) -> None:
    model = tiny.model("llama")
    watch = monitor(tiny.probe(), layers=[0, 1, -1], intervals=intervals)
    for cpu, gpu in zip(watch.measure(model, 0), watch.measure(copy.deepcopy(model).cuda(), 1), strict=True):
        assert gpu.metrics == pytest.approx(cpu.metrics, rel=1e-3)  # TF32 or not, the spectrum is of float32 states
        assert gpu.precision == "fp32"
        assert not gpu.eigenvalues.is_cuda


@pytest.mark.parametrize("how", ["autocast", "model"])
def test_bf16(how: str) -> None:
    """Against the model's own full forward, on the batches in which the probe is read."""
    model = tiny.model("llama", **({"dtype": torch.bfloat16} if how == "model" else {})).cuda()
    probe = tiny.probe()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=how == "autocast"), torch.no_grad():
        (record,) = monitor(probe).measure(model, 0)
        features_nd = torch.empty(len(probe), 16, dtype=torch.float64)
        for batch in probe.batches(32):
            given = {"input_ids": batch.input_ids_bt.cuda(), "attention_mask": batch.mask_bt.cuda()}
            states_btd = model.eval()(**given, output_hidden_states=True).hidden_states[-1].double().cpu()
            features_nd[batch.rows_b] = states_btd[torch.arange(len(states_btd)), batch.lengths_b - 1]
    assert record.precision == "bf16"
    assert record.metrics == pytest.approx(reference.describe(features_nd.numpy(), tiny.WINDOW), rel=1e-3)


def test_no_random_state_of_the_device_moves() -> None:
    model = tiny.model("gpt_neox", hidden_dropout=0.3).cuda()
    before = torch.cuda.get_rng_state()
    monitor(tiny.probe()).measure(model, 0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_peak_memory() -> None:
    """Against `output_hidden_states=True` with logits, whose logits alone take 32 · 512 · 32,000 floats: 2 GB."""
    shape = dict(vocab_size=32_000, hidden_size=256, intermediate_size=512, max_position_embeddings=512)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_attention_heads=4, **shape)).cuda().eval()
    ids_nt = torch.randint(3, 32_000, (32, 512))
    watch = monitor(ProbeSet.from_token_ids(ids_nt), batch_size=32)

    def peak(run: Callable[[], object]) -> int:
        run()  # what is allocated once, such as a cuBLAS workspace, is no part of it
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    lean = peak(lambda: watch.measure(model, 0))
    with torch.no_grad():
        full = peak(lambda: model(input_ids=ids_nt.cuda(), output_hidden_states=True))
    assert full > 2e9
    assert lean < full / 4, f"{lean / 2**20:.0f} MiB against {full / 2**20:.0f} MiB"


def waits(call: Callable[[], object]) -> int:
    """How often `call` waits for the device, as torch counts it."""
    call()  # kernels are loaded, and the solver's handle made
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


@pytest.mark.parametrize("layers", [[3], [0, 1, 2, 3]], ids=["one layer", "four"])
@pytest.mark.parametrize("batches", [1, 10])
@torch.no_grad()
def test_waits(layers: list[int], batches: int) -> None:
    """What the backbone's own code waits for in each batch; once for the pass and once for the numbers, however many
    layers are read; and PyTorch's own check of each of the two solves of a layer.
    """
    model = tiny.model("llama").cuda()
    probe = ProbeSet.from_token_ids(torch.randint(3, tiny.VOCABULARY, (40 * batches, 10)))
    watch = monitor(probe, layers=layers, batch_size=40, spectra=False)
    ids_bt, matrix_dd = probe.input_ids_nt[:40].cuda(), torch.eye(16, dtype=torch.float64, device="cuda")
    assert waits(lambda: torch.ones(1, device="cuda").item()) == 1, "torch counts no waits here: the check is void"
    of_a_pass = waits(lambda: model.model(input_ids=ids_bt, use_cache=False))
    of_a_solve = waits(lambda: torch.linalg.eigvalsh(matrix_dd))
    assert waits(lambda: watch.measure(model, 0)) <= batches * of_a_pass + 2 + 2 * len(layers) * of_a_solve
