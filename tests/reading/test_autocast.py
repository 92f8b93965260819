"""The arithmetic of a loop of one's own: that which its wrapper gives the model, or a word that it is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.fabric import Fabric

from geomcallbacks import GeometryMonitor

UNKNOWN = "the precision of training is not known"


def accelerated(precision: str) -> Callable[[torch.nn.Module], Any]:
    return lambda model: Accelerator(mixed_precision=precision, cpu=True).prepare(model)


def under_fabric(precision: str) -> Callable[[torch.nn.Module], Any]:
    return lambda model: Fabric(accelerator="cpu", devices=1, precision=precision).setup(model)


LOOPS: dict[str, tuple[Callable[[Any], Any], str, bool]] = {
    "accelerate bf16": (accelerated("bf16"), "bf16", True),
    "accelerate fp32": (accelerated("no"), "fp32", True),
    "accelerate, compiled": (lambda model: torch.compile(accelerated("bf16")(model), backend="eager"), "bf16", True),
    "Fabric bf16-mixed": (under_fabric("bf16-mixed"), "bf16", True),
    "Fabric bf16-true": (under_fabric("bf16-true"), "bf16", True),
    "Fabric fp32": (under_fabric("32-true"), "fp32", True),
    "weights alone": (lambda model: model, "fp32", False),
    "weights alone, bf16": (lambda model: model.to(torch.bfloat16), "bf16", False),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_block_computes_in_the_precision_of_training(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's dense layer says in which dtype it computes, in training and when measured."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    wrap, precision, known = LOOPS[loop]
    seen: list[torch.dtype] = []
    model = tiny.model()
    model.gpt_neox.layers[0].mlp.dense_h_to_4h.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    model = wrap(model)
    model(*tiny.rows(2))
    trained = seen[-1]
    record = GeometryMonitor(tiny.probe(), **tiny.watching()).measure(model, 0)[0]
    assert (seen[-1], record.precision) == (trained, precision)
    assert [note for note in record.notes if UNKNOWN in note] == ([] if known else record.notes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert GeometryMonitor(tiny.probe(), **tiny.watching()).measure(model, 0)[0].notes == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_of_weights_that_are_none_is_refused(dtype: torch.dtype) -> None:
    watch = GeometryMonitor(tiny.probe(), **tiny.watching(precision="fp32"))
    with pytest.raises(ValueError, match=r"precision='fp32', and the model's weights are (bf16|fp16).*'training'"):
        watch.start(tiny.model().to(dtype))
