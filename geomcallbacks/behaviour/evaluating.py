"""How every measure of behaviour calls the model: quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from geomcallbacks.reading import locate
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.settings import ReadingSettings


def language_model_of(model: nn.Module) -> Any:
    """The only causal language model, head included, inside whatever a training loop wraps around it.

    Raises:
        ValueError: there is none or there are several, it has no head, or its parameters are sharded.
    """
    inner = locate.unwrap(model)
    locate.refuse_sharded(inner)
    locate.refuse_unsupported(inner)
    _, found = locate.find_root(inner, None, by_name=False)
    if locate.head_of(found) is None:
        raise ValueError(f"{type(found).__name__} has no language-model head: give one such as AutoModelForCausalLM's")
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[Any]:
    """Inside: the language model in evaluation mode, without gradients, under the autocast that is active. Afterwards
    everything is as it was: modes, attributes, buffers and every random state. See `language_model_of`.
    """
    found = language_model_of(model)
    # Not the cached autocast of training: a weight cached here without gradients would be used by the next update.
    with leave_no_trace(model), torch.no_grad(), ReadingSettings().autocast(device_of(found)):
        yield found


def check_tokens(model: nn.Module, name: str, largest: int, longest: int) -> None:
    """Raise ``ValueError`` where the model's vocabulary or its positions do not reach as far as a set of rows."""
    locate.check_tokens(language_model_of(model), f"the set of {name}", largest, longest)
