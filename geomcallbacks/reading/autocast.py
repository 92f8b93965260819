"""The arithmetic of a training loop, as far as the wrapper that it has put around its model shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

#: Gives what is entered around a forward pass.
Arithmetic = Callable[[], AbstractContextManager[Any]]

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


def arithmetic_of(model: nn.Module, device: torch.device) -> Arithmetic | None:
    """Return the arithmetic that Fabric or accelerate gives a model's outermost forward; None where none is shown.

    A backbone that is called directly would be computed without it.
    """
    while True:
        if "_FabricModule" in {kind.__name__ for kind in type(model).__mro__}:
            strategy: Any = model._strategy
            return strategy.precision.forward_context  # type: ignore[no-any-return]
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module) or "_original_forward" in vars(model):
            break
        model = inner
    states = getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)
    if states is None or not states._shared_state:
        return None
    precision = states._shared_state.get("_mixed_precision")
    if precision != "no" and "_original_forward" not in vars(model):  # a model that accelerate has not prepared
        return None
    dtype = _DTYPES.get(str(precision))
    return nullcontext if dtype is None else partial(torch.autocast, device.type, dtype=dtype)
