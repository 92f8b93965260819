"""The blocks of a backbone compiled for the probe, while it is read and no longer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def refuse_compiled(model: nn.Module) -> None:
    """Raise ``ValueError`` where training is compiled: graphs of both would share one cache and one idea of shapes."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ValueError(
                f"compile=True, and {name or type(module).__name__!r} is compiled for training already: leave compile"
                " at False, and the probe runs eagerly without touching the training graphs"
            )


@contextmanager
def compiled_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Run the given blocks compiled inside, each for itself: hooks around them go on firing, and equal blocks share
    one graph. Shapes are taken as fixed.
    """
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = torch.compile(block.forward, dynamic=False)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward
