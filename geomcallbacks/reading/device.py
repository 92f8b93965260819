"""On which device something is done, and how tensors get there without making anyone wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device on which the model computes.

    That of its first parameter, or of its mesh, which sharded parameters in the host's memory are brought to.
    """
    for parameter in model.parameters():
        if parameter.is_meta:  # accelerate brings its weights in block by block
            continue
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is None or mesh.device_type == parameter.device.type:
            return parameter.device
        return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())
    return torch.device("cpu")


def float64_device(device: torch.device) -> torch.device:
    """Return the device on which float64 arithmetic for tensors of `device` is done: itself, but the CPU for MPS.

    Also for an XPU that has none.
    """
    lacks = device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64
    return torch.device("cpu") if lacks or device.type == "mps" else device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on `device`, queued behind the work that is there instead of waiting for it."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and device.type == accelerator.type != "mps":
        # Only pinned memory is copied without a wait. PyTorch keeps it, and gives the same to the next batch.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=True)


def own_device() -> torch.device:
    """Return this process's accelerator, by its rank on this machine; the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    if accelerator.type == "mps":
        return accelerator
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


@contextmanager
def kept_random_states(devices: set[torch.device]) -> Iterator[None]:
    """Put back afterwards the random states of the CPU and of these devices, whatever their kind."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {device.type for device in devices} - {"cpu", "meta"}:
            if kind == "mps":  # one device, without a number
                stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            else:
                numbers = [device.index for device in devices if device.type == kind]
                stack.enter_context(torch.random.fork_rng(devices=numbers, device_type=kind))
        yield
