"""How finely a model computes: what rounding may have put into its states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def eps_of(module: nn.Module, device: torch.device, others: Iterable[torch.dtype | None] = ()) -> float:
    """Return the relative error of one step of what a module computes, the coarsest of all that has a say in it.

    That is the autocast that is active, the dtype of its weights, that in which its quantised layers compute, and
    `others`; on CUDA also what products in float32 are allowed to be computed in. How weights are *stored* in fewer
    than 16 bits says nothing: they are spread out before they are used.
    """
    dtypes = {*others, *(p.dtype for p in module.parameters())}
    dtypes |= {getattr(child, "compute_dtype", None) for child in module.modules()}
    if torch.is_autocast_enabled(device.type):
        dtypes.add(torch.get_autocast_dtype(device.type))
    known = [one for one in dtypes if isinstance(one, torch.dtype) and one.is_floating_point and one.itemsize > 1]
    coarsest = max((torch.finfo(dtype).eps for dtype in known), default=torch.finfo(torch.float32).eps)
    if device.type != "cuda":
        return coarsest
    return max(coarsest, {"high": 2.0**-10, "medium": 2.0**-7}.get(torch.get_float32_matmul_precision(), 0.0))


@contextmanager
def noting_dtypes(modules: Iterable[nn.Module], device: torch.device) -> Iterator[set[torch.dtype]]:
    """Inside, note the dtypes of what modules give, and of an autocast that a model turns on within itself."""
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        given = getattr(output, "last_hidden_state", output)
        given = given[0] if isinstance(given, (tuple, list)) and given else given
        if isinstance(given, Tensor):
            seen.add(given.dtype)
        if torch.is_autocast_enabled(device.type):
            seen.add(torch.get_autocast_dtype(device.type))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        yield seen


def roundings(module: nn.Module, label: str) -> int:
    """Return by how much the variance of rounding has grown on the way to a layer: once with every block."""
    number = label.removeprefix("layer")
    if number.isdecimal():
        return int(number) + 2
    lists = (child for child in module.modules() if isinstance(child, (nn.ModuleList, nn.Sequential)))
    return max((len(blocks) for blocks in lists), default=0) + 2


def dtype_name(dtype: torch.dtype | None) -> str:
    """Return the short name of a dtype, such as "bf16"."""
    name = str(dtype).removeprefix("torch.")
    return _SHORT_NAMES.get(name, name)
