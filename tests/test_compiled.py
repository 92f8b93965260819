"""compile=True: the same numbers, two measurements for one compilation, and no trace on the model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch._dynamo.utils import counters

from geomcallbacks import GeometryMonitor
from geomcallbacks.hidden import Reader


@pytest.fixture(autouse=True)
def _fast_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are captured and guarded as ever, and run by PyTorch itself: generating code takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def watch(**settings: Any) -> GeometryMonitor:
    given = {"layers": [0, 2, -1], "alpha_window": tiny.WINDOW, "batch_size": 16, "on_error": "raise"} | settings
    return GeometryMonitor(tiny.probe(64), **given)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "olmo2", "gpt2"])
def test_compiled_gives_what_eager_gives(kind: str) -> None:
    model = tiny.model(kind)
    eager, compiled = (watch(compile=how).measure(model, 0) for how in (False, True))
    assert counters["stats"]["unique_graphs"] > 0
    for one, other in zip(eager, compiled, strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-5)


def test_later_measurements_compile_nothing() -> None:
    """All batches of the probe have one shape, also after an update of the weights."""
    model, monitor = tiny.model("llama"), watch(compile=True)
    monitor.measure(model, 0)
    graphs = counters["stats"]["unique_graphs"]
    before = monitor.measure(model, 1)[-1].metrics
    optimiser = torch.optim.SGD(model.parameters(), lr=10.0)
    ids_nt, mask_nt = tiny.rows(4, 12)
    model(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss.backward()
    optimiser.step()
    assert monitor.measure(model, 2)[-1].metrics["rankme"] != pytest.approx(before["rankme"], rel=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.parametrize("fails", [False, True])
def test_blocks_are_as_they_were(fails: bool) -> None:
    model = tiny.model("llama")
    before = [dict(vars(block)) for block in model.model.layers]
    if fails:

        def broken(*args: Any) -> None:
            raise KeyError("injected")

        model.model.norm.register_forward_hook(broken)
        with pytest.raises(KeyError, match="injected"):
            watch(compile=True, layers=-1).measure(model, 0)
    else:
        watch(compile=True).measure(model, 0)
    for block, attributes in zip(model.model.layers, before, strict=True):
        assert vars(block).keys() == attributes.keys()
        assert "forward" not in vars(block)
    assert model.training


@pytest.mark.parametrize("how", ["wrapped", "in place", "a block"])
def test_model_compiled_for_training_is_refused(how: str) -> None:
    model: nn.Module = tiny.model("llama")
    if how == "wrapped":
        model = torch.compile(model)
    elif how == "in place":
        model.compile()
    else:
        model.model.layers[1].compile()
    with pytest.raises(ValueError, match=r"compile=True, and .* is compiled for training already: leave compile at F"):
        watch(compile=True).start(model)


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile=True compiles the blocks of a causal language model"):
        Reader(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), "1", compile=True)
    with pytest.raises(ValueError, match=r"compile=True and forward= are both given"):
        watch(compile=True, forward=lambda model, ids, mask: model(ids))
