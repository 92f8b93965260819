"""Which weights a model holds: those that training moves, or an average of them; and how they are stored.

A label begins with the word that tells the two apart, "training" or "average", and says in brackets how that is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

TRAINING = "training"
SCHEDULE_FREE_Y = "training (schedule-free y)"
SCHEDULE_FREE_X = "average (schedule-free x)"
#: torch.optim.swa_utils, and timm's.
_AVERAGED = re.compile(r"AveragedModel|ModelEma\w*")


def average(by: str) -> str:
    """Return the label of an average that something makes."""
    return f"average ({by})"


def is_average(label: str) -> bool:
    """Whether a label is that of an average."""
    return label.startswith("average")


def held_by_optimizers(optimizers: Iterable[Any]) -> str:
    """Return which weights the optimisers have put into the model: schedule-free ones hold two sets and swap them."""
    known = [each for each in optimizers if any("train_mode" in group for group in getattr(each, "param_groups", ()))]
    return schedule_free([{"param_groups": each.param_groups, "state": each.state} for each in known])


def schedule_free(states: Iterable[Any]) -> str:
    """Return the same from `state_dict()` of the optimisers."""
    groups = [(group, state["state"]) for state in states for group in state["param_groups"] if "train_mode" in group]
    if not groups:
        return TRAINING
    # Before the first update both sets are the same.
    return SCHEDULE_FREE_Y if any(group["train_mode"] or not state for group, state in groups) else SCHEDULE_FREE_X


def average_around(model: nn.Module, called: nn.Module) -> str | None:
    """Return the label of the average that the module which is called lies in; None where it lies in none."""
    for module in model.modules():
        if _AVERAGED.fullmatch(type(module).__name__) and any(child is called for child in module.modules()):
            return average(type(module).__name__)
    return None


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    """Whether all weights of two modules of one shape, those that training moves, are the same."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(one, its.to(one.device)) for one, its in pairs if one.requires_grad)


def storage_of(model: nn.Module) -> str | None:
    """Return how most of the quantised weights in a model are stored, such as "nf4" or "int8"; None: none is."""
    sizes: Counter[str] = Counter()
    packed = [value for name, value in model.named_buffers() if name.endswith(("weight", "weight_packed"))]
    for value in (*model.parameters(), *packed):  # other buffers of whole numbers are masks and positions
        if (kind := _stored_as(value)) is not None:
            sizes[kind] += value.numel()
    for module in model.modules():  # weights that are rounded in each forward pass, in quantisation-aware training
        if "FakeQuantized" in type(module).__name__:
            sizes[type(module).__name__] += sum(value.numel() for value in module.parameters())
    return sizes.most_common(1)[0][0] if sizes else None


def _stored_as(value: Tensor) -> str | None:
    if (quant_type := getattr(value, "quant_type", None)) is not None:  # bitsandbytes: "nf4" or "fp4"
        return str(quant_type)
    if type(value).__module__.startswith("torchao"):  # whose tensors pass for those that they stand for
        return f"torchao {type(value).__name__}"
    packed = value.dtype.itemsize == 1 or not value.is_floating_point()
    return str(value.dtype).removeprefix("torch.") if packed else None
