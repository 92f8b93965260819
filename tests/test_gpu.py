"""On a CUDA device: the CPU's values, no more memory than the backbone needs, and few waits. See `make test-gpu`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import reference
import tiny
import torch
from test_monitor import assert_metrics, own_features
from transformers import LlamaConfig, LlamaForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet, metrics
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader
from geomcallbacks.spectra.moments import Moments
from geomcallbacks.spectra.spectrum import spectrum_of, spectrum_of_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch.cuda finds none here"),
]


@pytest.mark.parametrize(("n", "d"), [(3000, 512), (512, 512), (300, 2048)], ids=["n>d", "n=d", "n<d"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_spectrum_and_metrics_against_the_reference(n: int, d: int, dtype: torch.dtype) -> None:
    rows_nd = torch.from_numpy(reference.features(n, d, mean=0.5)).to("cuda", dtype)
    stores = [spectrum_of_rows(rows_nd)]
    if n > d:
        moments = Moments(d, "cuda")
        for batch_bd in rows_nd.split(100):
            moments.update(batch_bd)
        stores.append(spectrum_of(moments))
    wanted = reference.describe(rows_nd.cpu().double().numpy(), (11, 100))
    for spectrum in stores:
        assert spectrum.eigenvalues.is_cuda
        got, reasons = metrics.describe(spectrum, (11, 100))
        assert reasons == {}
        assert got == pytest.approx(wanted, rel=1e-8)


def test_compiled_blocks() -> None:
    """Generated code, where the CPU's tests run the captured graphs by PyTorch."""
    model = tiny.model("llama").cuda()
    plain, other = (
        GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, on_error="raise", compile=how).measure(model, 0)[0]
        for how in (False, True)
    )
    assert other.metrics == pytest.approx(plain.metrics, rel=1e-3)


@pytest.mark.parametrize("intervals", [False, True])
def test_measurement_against_the_cpu(intervals: bool) -> None:
    model, settings = tiny.model("llama"), dict(alpha_window=tiny.WINDOW, on_error="raise", intervals=intervals)
    on_cpu = GeometryMonitor(tiny.probe(), layers=[0, 1, -1], **settings).measure(model, 0)
    on_gpu = GeometryMonitor(tiny.probe(), layers=[0, 1, -1], **settings).measure(copy.deepcopy(model).cuda(), 0)
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert gpu.metrics == pytest.approx(cpu.metrics, rel=1e-3)  # TF32 or not, the spectrum is of float32 states
        assert gpu.precision == "fp32"
        assert not gpu.eigenvalues.is_cuda


@pytest.mark.parametrize("how", ["autocast", "model"])
def test_bf16(how: str) -> None:
    model = tiny.model("llama", **({"dtype": torch.bfloat16} if how == "model" else {})).cuda()
    probe = tiny.probe()

    class OnDevice(torch.nn.Module):
        """Takes the probe's CPU tensors, for `own_features`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids_bt: torch.Tensor, attention_mask: torch.Tensor, **settings: bool) -> object:
            out = self.model(ids_bt.cuda(), attention_mask=attention_mask.cuda(), **settings)
            out.hidden_states = tuple(states.cpu() for states in out.hidden_states)
            return out

    watch = GeometryMonitor(probe, alpha_window=tiny.WINDOW, on_error="raise")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=how == "autocast"):
        wanted_nd = own_features(OnDevice(), probe)
        (record,) = watch.measure(model, 0)
    assert record.precision == "bf16"
    assert_metrics(record, wanted_nd, rel=1e-3)


def test_no_random_state_of_the_device_moves() -> None:
    model = tiny.model("gpt_neox", hidden_dropout=0.3).cuda()
    before = torch.cuda.get_rng_state()
    GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, on_error="raise").measure(model, 0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_peak_memory_of_the_forward() -> None:
    """Against `output_hidden_states=True` with logits, whose logits alone take 32 · 512 · 32,000 floats: 2 GB."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).cuda().eval()
    probe = ProbeSet.from_token_ids(torch.randint(3, 32_000, (32, 512)))
    (batch,) = probe.batches(32)
    reader = Reader(model)

    def peak(run: Callable[[], None]) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def ours() -> None:
        with leave_no_trace(reader.called):
            reader.read(batch, "last")

    def everything() -> None:
        with torch.no_grad():
            ids_bt, mask_bt = batch.input_ids_bt.cuda(), batch.mask_bt.cuda()
            model(input_ids=ids_bt, attention_mask=mask_bt, output_hidden_states=True)

    ours()  # what is allocated once, such as a cuBLAS workspace, is no part of it
    everything()
    lean, full = peak(ours), peak(everything)
    assert full > 2e9
    assert lean < full / 4, f"{lean / 2**20:.0f} MiB against {full / 2**20:.0f} MiB"


def counted(call: Callable[[], object]) -> int:
    """How often `call` waits for the device, as torch counts it."""
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
def test_waits(layers: list[int], batches: int) -> None:
    """What the backbone's own code waits for in each batch; once for the pass and once for the numbers, however many
    layers are read; and PyTorch's own check of each of the two solves of a layer.
    """
    model = tiny.model("llama").cuda()
    probe = ProbeSet.from_token_ids(torch.randint(3, tiny.VOCABULARY, (40 * batches, 10)))
    watch = GeometryMonitor(
        probe, layers=layers, alpha_window=tiny.WINDOW, batch_size=40, on_error="raise", spectra=False
    )
    ids_bt, matrix_dd = probe.input_ids_nt[:40].cuda(), torch.eye(16, dtype=torch.float64, device="cuda")

    @torch.no_grad()
    def own() -> None:
        model.model(input_ids=ids_bt, use_cache=False)

    def solve() -> None:
        torch.linalg.eigvalsh(matrix_dd)

    for call in (own, solve, lambda: watch.measure(model, 0)):
        call()  # kernels are loaded, and the solver's handle made
    assert counted(lambda: torch.ones(1, device="cuda").item()) == 1, "torch counts no waits here: the check is void"
    expected = batches * counted(own) + 2 + 2 * len(layers) * counted(solve)
    assert counted(lambda: watch.measure(model, 1)) <= expected
