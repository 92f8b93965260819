"""DeepSpeed ZeRO-3, as far as reading a model that it has partitioned must know.

Parameters are empty but while a module uses them: DeepSpeed's hooks gather them, in the order of modules that it has
recorded of an earlier pass. Tried with DeepSpeed 0.19.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 has shared out this parameter over processes."""
    return hasattr(parameter, "ds_id")


def refuse_unreadable(model: nn.Module) -> None:
    """Raise ``ValueError`` where the module that ZeRO-3 took over cannot be called with tokens, or was not given."""
    kind, taken = type(model).__name__, inspect.signature(model.forward).parameters.values()
    if not any(one.name == "input_ids" or one.kind is one.VAR_KEYWORD for one in taken):
        raise ValueError(f"{kind}, partitioned by ZeRO-3, takes no input_ids: let its forward take them, or use FSDP2")
    if _coordinator(model) is None:
        raise ValueError(f"{kind}, partitioned by ZeRO-3, has no hook that begins a pass: give DeepSpeed's own engine")


def forget_pass(model: nn.Module) -> None:
    """Have DeepSpeed record the next pass anew.

    It takes the first pass for the order of an update, and one without a backward pass before the first update breaks
    the recomputation of checkpointed blocks (0.19.8: an evaluation there does the same). What it had gathered ahead
    for a backward pass is released.
    """
    coordinator = _coordinator(model)
    if coordinator is not None and not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


def _coordinator(model: nn.Module) -> Any:
    """Return what gathers parameters. The hooks of the partitioned module alone know it."""
    owners = (_owner(hook) for hook in model._forward_pre_hooks.values())
    return next((owner.get_param_coordinator() for owner in owners if owner is not None), None)


def _owner(function: Callable[..., Any]) -> Any:
    """Return what has the coordinator, from a function's closure or that of a function inside it."""
    for cell in getattr(function, "__closure__", None) or ():
        value = cell.cell_contents
        found = value if hasattr(value, "get_param_coordinator") else _owner(value)
        if found is not None:
            return found
    return None
