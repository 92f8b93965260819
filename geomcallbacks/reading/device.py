"""On which device something is done, and how tensors get there without making anyone wait."""

from __future__ import annotations

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
    """Return the device on which float64 arithmetic for tensors of `device` is done: itself, but the CPU for MPS."""
    return torch.device("cpu") if device.type == "mps" else device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on `device`, queued behind the work that is there instead of waiting for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # only pinned memory is copied without a wait
    return tensor.to(device, copy=True)
