"""What a trial pass over a short row shows: what enters a model's head, its hidden states, what passes its modules.

Of each the state of the last position is kept: enough to tell states apart, and little for a model of many modules.
Tensors of one pass are compared bit by bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomcallbacks.reading.positions import states_in

Side = Literal["input", "output"]
#: A module's path in the module that the pass was watched in, and on which side of it a state passes.
Place = tuple[str, Side]


@dataclass
class Evidence:
    """What one pass over a row of t tokens showed.

    Attributes:
        states: (d,) of each of the model's own `hidden_states`, where it gives them.
        head: path of the head that was called, and (d,) that entered it; None where none was.
        passed: (d,) that passed each place the last time its module ran; places of a (1, t, d) tensor alone.
        runs: how often each module ran.
    """

    states: list[Tensor] | None = None
    head: tuple[str, Tensor] | None = None
    passed: dict[Place, Tensor] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)

    def find(self, wanted_d: Tensor, *first: Place) -> Place | None:
        """Return where a state passes: at one of the `first` places, else at the outermost output, else input."""
        rest = sorted(self.passed, key=lambda place: (place[1] == "input", place[0].count(".")))
        return next((p for p in (*first, *rest) if p in self.passed and same(self.passed[p], wanted_d)), None)


def watch(root: nn.Module, call: Callable[[], Any], input_ids_bt: Tensor, head: nn.Module | None) -> Evidence:
    """Run one row and return what was seen.

    Args:
        root: the module whose submodules are watched.
        call: runs the row.
        input_ids_bt: (1, t), the row.
        head: the language-model head. None: the last linear layer as wide as the embedding that the tokens enter is
            long.
    """
    seen, shape = Evidence(), tuple(input_ids_bt.shape)
    entered: list[tuple[str, nn.Module, Tensor]] = []  # what may be the head, in the order in which they ran
    vocabulary: set[int] = set()

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        value = args[0] if args else kwargs.get("hidden_states")
        seen.runs[name] += 1
        _keep(seen, (name, "input"), value, shape)
        if module is head or (head is None and isinstance(module, nn.Linear)):
            hidden = states_in(value)
            if hidden is not None and hidden.ndim >= 2:
                entered.append((name, module, _last(hidden)))
        elif head is None and isinstance(module, nn.Embedding) and _equal(value, input_ids_bt):
            vocabulary.add(module.num_embeddings)

    def end(name: str, output: Any) -> None:
        _keep(seen, (name, "output"), output, shape)
        states = getattr(output, "hidden_states", None)
        if name == "" and states and all(isinstance(state, Tensor) for state in states):
            seen.states = [_last(state) for state in states]

    with ExitStack() as stack:
        for name, module in root.named_modules():
            before = module.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: begin(name, module, args, kwargs), with_kwargs=True
            )
            stack.callback(before.remove)
            after = module.register_forward_hook(lambda module, args, output, name=name: end(name, output))
            stack.callback(after.remove)
        call()
    for name, module, entered_d in entered:
        if module is head or module.out_features in vocabulary:
            seen.head = (name, entered_d)
    return seen


def same(left_d: Tensor, right_d: Tensor) -> bool:
    """Whether two states are equal: bit by bit, but for a change of dtype."""
    if left_d.shape != right_d.shape:
        return False
    return torch.allclose(left_d.to(right_d), right_d, rtol=0.0, atol=0.0, equal_nan=True)


def _equal(value: Any, ids_bt: Tensor) -> bool:
    return isinstance(value, Tensor) and value.device == ids_bt.device and torch.equal(value, ids_bt)


def _keep(seen: Evidence, place: Place, value: Any, shape: tuple[int, ...]) -> None:
    hidden = states_in(value)
    seen.passed.pop(place, None)  # the last run counts, whatever it was called with
    if hidden is not None and hidden.ndim == 3 and tuple(hidden.shape[:2]) == shape and hidden.is_floating_point():
        seen.passed[place] = _last(hidden)


def _last(states: Tensor) -> Tensor:
    """Return a copy, as what was seen may be changed in place later, of the last position of the only row."""
    return states.detach()[0, -1].clone()
