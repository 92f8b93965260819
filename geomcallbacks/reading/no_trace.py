"""A model in evaluation mode for a while, and everything as it was afterwards."""

from __future__ import annotations

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geomcallbacks.reading.device import kept_random_states

#: What a module may count in. Relatives may forbid to be changed, as Transformers' outputs do.
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, set, list, deque)
_COPIED = 1 << 16  # elements: counters, averages and router biases, but not the weights of a quantised layer


@contextmanager
def leave_no_trace(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside, and put back afterwards what a forward pass may change.

    That is each submodule's own mode, attributes, what they hold, buffers and hooks, and every random state. Compiled
    submodules run eagerly inside: a hook added after the first compiled call would never fire, and the probe's shapes
    would make the training graphs dynamic.
    """
    # Modes are attributes too; dynamic RoPE replaces buffers and attributes for a row longer than any before.
    # Transformers hooks every block when hidden_states are first asked for.
    before = [(child, dict(vars(child)), _kept(child)) for child in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers() if _is_copied(buffer)]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(kept_random_states({parameter.device for parameter in module.parameters()}))
        if "torch._dynamo" in sys.modules:  # nothing is compiled before that is loaded, and loading takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for child, _, _ in before:
                # In evaluation on a CPU bitsandbytes' Linear4bit packs its weight anew, for good; it has no other mode.
                child.training = hasattr(child, "support_avx512bf16_for_cpu")
            yield
        finally:
            for child, attributes, contents in before:
                for added in vars(child).keys() - attributes.keys():
                    del vars(child)[added]
                vars(child).update(attributes)
                for kept, content in contents:
                    kept.clear()
                    (kept.extend if isinstance(kept, (list, deque)) else kept.update)(content)
            for buffer, value in buffers:
                buffer.data.copy_(value)  # not itself, which a graph that waits for its backward may have saved
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _kept(module: nn.Module) -> list[tuple[Any, Any]]:
    """Return the containers of a module whose contents a forward pass may change, each with its contents."""
    left = ("_parameters", "_modules")  # they belong to whoever shards them
    found = [value for name, value in vars(module).items() if name not in left and type(value) in _CONTAINERS]
    return [(value, value.copy() if value else ()) for value in found]  # most are empty, and copies take time


def _is_copied(buffer: Tensor) -> bool:
    return buffer.numel() <= _COPIED and not buffer.is_inference()
