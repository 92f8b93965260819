"""DeepSpeed ZeRO-3, as far as reading a model that it has partitioned must know.

Parameters are empty but while a module uses them: DeepSpeed's hooks gather them, in the order of modules that it has
recorded of an earlier pass.
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
    taken = inspect.signature(model.forward).parameters.values()
    if not any(one.name == "input_ids" or one.kind is one.VAR_KEYWORD for one in taken):
        raise ValueError(
            f"{type(model).__name__} is partitioned by DeepSpeed ZeRO-3 as a whole, and its forward takes no input_ids:"
            " give it a forward that hands them to the language model, or shard that by fully_shard instead"
        )
    if _coordinator(model) is None:
        raise ValueError(
            f"{type(model).__name__} is partitioned by DeepSpeed ZeRO-3, and the hook that begins a pass was not found:"
            " give the engine or its whole module after deepspeed.initialize (tried with DeepSpeed 0.19)"
        )


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
    """What gathers parameters; it is known to the hooks of the partitioned module alone."""
    for hook in model._forward_pre_hooks.values():
        owner = _held(hook, "get_param_coordinator")
        if owner is not None:
            return owner.get_param_coordinator()
    return None


def _held(function: Callable[..., Any], attribute: str) -> Any:
    """The object with that attribute which a function's closure holds, or that of a function inside it."""
    for cell in getattr(function, "__closure__", None) or ():
        value = cell.cell_contents
        if hasattr(value, attribute):
            return value
        found = _held(value, attribute) if inspect.isfunction(value) else None
        if found is not None:
            return found
    return None
