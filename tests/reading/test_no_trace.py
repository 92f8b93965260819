"""Reading leaves nothing behind: modes, gradients, hooks, buffers, random states, autocast."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import tiny
import torch
from states import hooks_of, proven
from torch import Tensor, nn

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.reading.device import kept_random_states, own_device
from geomcallbacks.reading.no_trace import leave_no_trace


@pytest.fixture
def mixed() -> nn.Module:
    """A model in training mode, some of whose parts are not, and some of whose weights are frozen."""
    model = tiny.model("gpt_neox", hidden_dropout=0.3, attention_dropout=0.3)
    model.gpt_neox.layers[1].eval()
    model.gpt_neox.layers[2].attention.eval()
    model.gpt_neox.embed_in.requires_grad_(False)
    return model


def trace(model: nn.Module) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        hooks_of(model),
        tiny.random_states(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
    )


def watch(**changes: object) -> GeometryMonitor:
    return GeometryMonitor(tiny.probe(), **{"alpha_window": tiny.WINDOW, "on_error": "raise", **changes})


@pytest.mark.parametrize("precision", ["training", "fp32", "bf16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["no autocast", "autocast"])
def test_measuring_leaves_no_trace(mixed: nn.Module, precision: str, autocast: bool) -> None:
    monitor = watch(layers=[0, 1, -1], precision=precision)
    weights = copy.deepcopy(mixed.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = trace(mixed)
        one = monitor.measure(mixed, 0)
        assert trace(mixed) == before
        other = monitor.measure(mixed, 1)
    assert [record.metrics for record in one] == [record.metrics for record in other]  # no dropout while measuring
    assert all(torch.equal(value, weights[name]) for name, value in mixed.state_dict().items())


def test_no_trace_after_an_exception(mixed: nn.Module) -> None:
    """Random states that the model moves are put back too, also where it draws in evaluation mode."""

    def fail(module: nn.Module, args: object) -> None:
        _ = torch.rand(1), random.random(), np.random.rand()
        raise RuntimeError("injected")

    monitor = watch(layers=[0, 1, -1])
    monitor.start(mixed)
    before = trace(mixed)
    handle = mixed.gpt_neox.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="injected"):
        monitor.measure(mixed, 0)
    handle.remove()
    assert trace(mixed) == before


def test_frequencies_of_dynamic_rope_are_put_back() -> None:
    """A row longer than any before makes it recompute them, and without care keep them."""
    model = tiny.model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    long = ProbeSet.from_token_ids(torch.randint(3, tiny.VOCABULARY, (4, 100)))
    reader = proven(model, tiny.probe(4))
    with leave_no_trace(reader.whole):
        reader.read(long.batches(4)[0], "last")
        assert not torch.equal(model.model.rotary_emb.inv_freq, before["model.rotary_emb.inv_freq"])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.model.rotary_emb.max_seq_len_cached == 64


class Counting(nn.Module):
    """Keeps accounts of its calls in every way that a module has."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(tiny.VOCABULARY, 16), nn.Linear(16, tiny.VOCABULARY)
        self.calls, self.shapes, self.lengths, self.seen = 0, [], {}, set()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(16))
        self.norm = nn.BatchNorm1d(16)

    def forward(self, ids_bt: Tensor) -> Tensor:
        hidden = self.wte(ids_bt)
        self.calls += 1
        self.passes += 1
        self.average.lerp_(hidden.mean((0, 1)), 0.1)
        self.shapes.append(ids_bt.shape)
        self.seen.add(ids_bt.shape)
        self.lengths[ids_bt.shape[1]] = self.calls
        self.norm.train()  # whatever it was told
        return self.head(self.norm(hidden.mT).mT)


def test_what_a_model_counts_is_put_back() -> None:
    """Also in the trial pass, and in place: a checkpoint would hold other buffers than without us."""
    model = Counting()
    model(torch.ones(2, 3, dtype=torch.int64))
    before, shapes = copy.deepcopy(model.state_dict()), model.shapes
    watch(layers="wte").step(model, 0)
    assert (model.calls, int(model.passes), model.lengths) == (1, 1, {3: 1})
    assert model.shapes is shapes
    assert (model.shapes, model.seen) == ([(2, 3)], {(2, 3)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", ["training", "bf16"])
def test_autocast_caches_no_weight_while_measuring(precision: str) -> None:
    """A low-precision copy that was made without gradients would end training in some versions of torch."""
    seen = []

    def forward(model: nn.Module, ids_bt: Tensor, mask_bt: Tensor) -> None:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        model(input_ids=ids_bt, attention_mask=mask_bt)

    monitor = watch(precision=precision, layers="gpt_neox.final_layer_norm", forward=forward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monitor.measure(tiny.model(), 0)
    assert set(seen) == {(True, False)}


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_random_states_of_any_accelerator_are_put_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for its generators: MPS is one device without a number, of others each has its own."""
    states = {None: 5} if kind == "mps" else {0: 5, 1: 6}
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device=None: states[device])
    monkeypatch.setattr(module, "set_rng_state", lambda state, device=None: states.update({device: state}))
    devices = {torch.device(kind) if index is None else torch.device(kind, index) for index in states}
    before = dict(states)
    with kept_random_states(devices | {torch.device("cpu"), torch.device("meta")}):
        states.update(dict.fromkeys(states, 9))
    assert states == before


@pytest.mark.parametrize(
    ("kind", "rank", "wanted"),
    [(None, "0", "cpu"), ("xpu", "3", "xpu:1"), ("cuda", "0", "cuda:0"), ("mps", "2", "mps")],
)
def test_own_device_is_of_whatever_kind_the_machine_has(
    kind: str | None, rank: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(own_device()) == wanted
