"""From what a trial pass showed to where each layer is read; what cannot be proven is refused with a line to copy.

The default layer is what enters the head, and a number is the model's own `hidden_states` of that number. Where it is
expected, it is looked for first; else any module that it passes will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geomcallbacks.reading.evidence import Evidence, Place, same
from geomcallbacks.reading.locate import (
    Layers,
    ReadPoint,
    blocks_of,
    expected,
    head_of,
    is_language_model,
    join,
    layer_list,
    none_found,
    submodule,
)


@dataclass(frozen=True)
class Proven:
    """Where a layer is read, and the state (d,) that the trial pass showed there; None for one that is named."""

    point: ReadPoint
    state_d: Tensor | None = None
    remark: str | None = None


def named(root: nn.Module, name: str) -> Proven:
    """Return where a submodule is read: at its output."""
    return Proven(ReadPoint(name, name, submodule(root, name), "output"))


def prove(root_name: str, root: nn.Module, layers: Layers, seen: Evidence) -> list[Proven]:
    """Return where each of the layers is read.

    Args:
        root_name: path of `root` in the whole model.
        root: the module that layers are counted in.
        layers: numbers or names of submodules.
        seen: what a trial pass showed of `root`.

    Raises:
        ValueError: a layer is not there, could not be found, or is asked for twice.
    """
    found = []
    for layer in layer_list(layers):
        if isinstance(layer, str):
            found.append(named(root, layer))
        elif not is_language_model(root):
            found.append(_before_head(root_name, root, seen))
        elif layer == -1:
            found.append(_last(root_name, root, seen))
        else:
            found.append(_numbered(root_name, root, layer, seen))
    labels = [one.point.label for one in found]
    if len(set(labels)) < len(labels):
        raise ValueError(f"layers={layers!r} names a layer twice ({', '.join(labels)}): name each once")
    return found


def refusal(model: nn.Module, seen: Evidence | None) -> str:
    """Say what to do where a model holds no language model: which layer enters the head, if a pass showed a head."""
    if seen is None:
        return f"{none_found(model)}; give forward=lambda model, ids, mask: … where it is not called with tokens alone"
    place = None if seen.head is None else seen.find(seen.head[1])
    if seen.head is None or place is None or place[1] == "input":
        return f"{none_found(model)} (layers=<name> for its output)"
    return f"{none_found(model)}; layers={place[0]!r} reads what enters its head, {seen.head[0]!r}"


def _point(root_name: str, root: nn.Module, label: str, place: Place, last: bool = True) -> ReadPoint:
    module = root.get_submodule(place[0])
    return ReadPoint(label, join(root_name, place[0]) or type(module).__name__, module, place[1], last)


def _last(root_name: str, root: Any, seen: Evidence) -> Proven:
    """Return what enters the head; of a model without one, what leaves it."""
    kind, count = type(root).__name__, _count(root, seen)
    backbone = expected(root, count - 1, count)
    assert backbone is not None
    if head_of(root) is None:
        if backbone not in seen.passed:
            raise ValueError(f"{kind} gives no hidden states (batch, tokens, d): name a submodule that does, layers=…")
        state_d = seen.passed[backbone]
        whole = seen.states is None or same(seen.states[-1], state_d)
        return Proven(_point(root_name, root, f"layer{count - 1}" if whole else "output", backbone), state_d)
    if seen.head is None:
        if seen.states is None or (place := seen.find(seen.states[-1], backbone)) is None:
            hint = f"layers={join(root_name, backbone[0])!r} reads what leaves the backbone"
            raise ValueError(f"layers=-1 is what enters the head of {kind}, which does not call its head: {hint}")
        return Proven(_point(root_name, root, f"layer{count - 1}", place), seen.states[-1])
    head, state_d = seen.head
    place = seen.find(state_d, backbone)
    if place is None:
        raise ValueError(
            f"layers=-1 is what enters the head of {kind}, {head!r}, which is no (batch, tokens, d):"
            f" layers={count - 1} reads its last hidden_states"
        )
    if seen.states is None or same(seen.states[-1], state_d):
        return Proven(_point(root_name, root, f"layer{count - 1}", place), state_d)
    remark = (
        f"layers=-1 reads what enters the head of {kind}, {join(root_name, head)!r}. That is not hidden_states[-1],"
        f" which layers={count - 1} reads: the model changes it before the head"
    )
    return Proven(_point(root_name, root, "head", place), state_d, remark)


def _numbered(root_name: str, root: Any, layer: int, seen: Evidence) -> Proven:
    """Return where one of the model's own hidden states passes."""
    kind, count = type(root).__name__, _count(root, seen)
    if not -count <= layer < count:
        has = f"{len(blocks_of(root)) or count - 1} blocks and gives {count} hidden_states"
        raise ValueError(f"layers={layer} is not in {kind}, which has {has}: give {-count} to {count - 1}")
    index = layer % count
    place = expected(root, index, count)
    if seen.states is None:
        line = "" if place is None or place[1] == "input" else f", such as layers={place[0]!r}"
        raise ValueError(f"{kind} gives no hidden_states to check layers={layer} by: name what is read{line}")
    state_d = seen.states[index]
    found = seen.find(state_d, *(() if place is None else (place,)))
    if found is None:
        near = "" if place is None else f", not even {place[0]!r}" if place[1] == "output" else ""
        line = " or layers=-1, what enters its head" if head_of(root) is not None else ""
        raise ValueError(f"hidden_states[{index}] of {kind} leaves none of its modules{near}: read layers=<name>{line}")
    last = index == count - 1 and (seen.head is None or same(seen.head[1], state_d))
    return Proven(_point(root_name, root, f"layer{index}", found, last), state_d)


def _before_head(root_name: str, root: nn.Module, seen: Evidence) -> Proven:
    """Return what enters the head of a model of no library: the last linear layer as wide as the embedding is long."""
    kind = type(root).__name__
    place = None if seen.head is None else seen.find(seen.head[1])
    if seen.head is None or place is None:
        children = ", ".join(f"layers={name!r}" for name, _ in root.named_children())
        raise ValueError(f"layers=-1 is what enters the head, and {kind} shows none: name what is read, of {children}")
    return Proven(_point(root_name, root, join(root_name, place[0]) or "output", place), seen.head[1])


def _count(root: Any, seen: Evidence) -> int:
    """Return how many hidden states the model has: as many as it gives, else one more than its blocks."""
    if seen.states is not None:
        return len(seen.states)
    depth = len(blocks_of(root)) or getattr(root.config.get_text_config(), "num_hidden_layers", 0)
    return int(depth) + 1
