"""What kind of model it is, which module layers are counted in, and where in it hidden states are read.

Language models are told by their class, without importing Transformers; what cannot be read is refused here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from geomcallbacks.reading.zero3 import is_partitioned

Layers = int | str | Sequence[int | str]


@dataclass(frozen=True)
class ReadPoint:
    """Where one layer's states are taken: at the `side` of the module called `name`."""

    label: str
    name: str
    module: nn.Module
    side: Literal["input", "output"]


def layer_list(layers: Layers) -> list[int | str]:
    """Return one layer or several as a list."""
    return list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel, DeepSpeed and torch.compile wrappers."""
    while True:
        is_engine = "DeepSpeedEngine" in {kind.__name__ for kind in type(model).__mro__}
        if is_engine or isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module  # type: ignore[assignment]
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def is_language_model(module: nn.Module) -> bool:
    """Whether this is a PreTrainedModel, told by its class: PEFT's wrappers forward attributes of what they wrap."""
    return hasattr(type(module), "base_model_prefix") and hasattr(type(module), "get_input_embeddings")


def find_root(model: nn.Module, name: str | None, by_name: bool) -> tuple[str, nn.Module]:
    """Return the path and the module that layers are counted in: the one called `name`, else the only language model.

    Args:
        model: the whole model.
        name: what the caller named, if anything.
        by_name: the caller names what is read, so that `model` itself serves where it holds no language model.

    Raises:
        ValueError: there is no such submodule, or no language model, or more than one.
    """
    if name is not None:
        return name, submodule(model, name, argument="module")
    found: list[tuple[str, nn.Module]] = []
    for path, child in model.named_modules():
        nested = any(outer == "" or path.startswith(f"{outer}.") for outer, _ in found)
        if is_language_model(child) and not nested:
            found.append((path, child))
    if by_name and not found:
        return "", model
    with_head = [(path, child) for path, child in found if child.get_output_embeddings() is not None]  # type: ignore[operator]
    candidates = with_head or found
    if len(candidates) == 1:
        return candidates[0]
    kind = type(model).__name__
    if candidates:
        listed = ", ".join(f"module={path!r} ({type(child).__name__})" for path, child in candidates)
        raise ValueError(f"{kind} holds {len(candidates)} language models: choose one, {listed}")
    children = ", ".join(f"{path} ({type(child).__name__})" for path, child in model.named_children())
    raise ValueError(f"no causal language model in {kind}: name what is read, module=<name>, of {children or 'none'}")


def submodule(root: nn.Module, name: str, argument: str = "layers") -> nn.Module:
    """Return the submodule of that name, or raise ``ValueError`` with the near names.

    Args:
        root: the module that names are counted from.
        name: path of the submodule.
        argument: what the caller calls the name, for the message.
    """
    modules = dict(root.named_modules())
    if name in modules:
        return unwrap(modules[name])
    near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"it has {', '.join(list(modules)[1:6])}, …"
    raise ValueError(f"{argument}={name!r} is no submodule of {type(root).__name__}: {hint}")


def read_points(root_name: str, root: nn.Module, layers: Layers) -> list[ReadPoint]:
    """Return where each of the layers is read.

    Args:
        root_name: path of `root` in the whole model.
        root: the module that layers are counted in.
        layers: numbers as in Transformers' `hidden_states`, or names of submodules.

    Raises:
        ValueError: no layer is asked for, one twice, or one that is not there.
    """
    points = []
    for layer in layer_list(layers):
        if isinstance(layer, str):
            points.append(ReadPoint(layer, layer, submodule(root, layer), "output"))
        elif is_language_model(root):
            points.append(_numbered(root_name, root, layer))
        elif layer == -1:
            points.append(ReadPoint(root_name or "output", root_name, root, "output"))
        else:
            raise ValueError(f"layers={layer} counts blocks, which {type(root).__name__} has not: name a submodule")
    labels = [point.label for point in points]
    if not labels:
        raise ValueError("layers=[] reads nothing: give a layer, or -1 for the last")
    if len(set(labels)) < len(labels):
        raise ValueError(f"layers={layers!r} names a layer twice ({', '.join(labels)}): name each once")
    return points


def _numbered(root_name: str, language_model: Any, layer: int) -> ReadPoint:
    """Return where layer `layer` is read: 0 enters the first block, i leaves block i, the last leaves the backbone."""
    backbone = backbone_of(language_model)
    depth = language_model.config.get_text_config().num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        kind = type(language_model).__name__
        raise ValueError(f"layers={layer} is not in {kind}, which has {depth} blocks: give {-depth - 1} to {depth}")
    index = layer % (depth + 1)
    module = backbone if index == depth else blocks_of(language_model)[max(index - 1, 0)]
    names = {child: name for name, child in language_model.named_modules()}
    name = ".".join(part for part in (root_name, names[module]) if part)
    return ReadPoint(f"layer{index}", name or type(module).__name__, module, "output" if index else "input")


def check_tokens(language_model: Any, name: str, largest: int, longest: int) -> None:
    """Raise ``ValueError`` where the model's vocabulary, or its learned positions, do not reach as far as some rows.

    Args:
        language_model: the model; nothing is checked where its embedding does not say how many token ids it knows, nor
            of rotary positions, which do not end.
        name: what holds the rows.
        largest: their largest token id.
        longest: tokens of the longest of them.
    """
    # PEFT's wrappers of an embedding hide num_embeddings, but not the weight.
    weight = getattr(language_model.get_input_embeddings(), "weight", None)
    shape: Sequence[int] = getattr(weight, "ds_shape", getattr(weight, "shape", ()))  # ZeRO-3 leaves an empty tensor
    if isinstance(weight, Tensor) and len(shape) == 2 and largest >= shape[0]:
        ends = f"the model's vocabulary ends at {shape[0] - 1}"
        raise ValueError(f"{name} holds token id {largest}, and {ends}: build it with the model's own tokenizer")
    positions = getattr(language_model.config.get_text_config(), "max_position_embeddings", None)
    rotary = any("RotaryEmbedding" in type(child).__name__ for child in language_model.modules())
    if positions is not None and not rotary and longest > positions:  # on CUDA, reading past it ends the process
        reach = f"and the model has {positions} positions"
        raise ValueError(f"{name} has a row of {longest} tokens, {reach}: shorten it, as max_length={positions} does")


def backbone_of(language_model: Any) -> nn.Module:
    """Return the decoder without its head, or raise ``ValueError`` for an encoder-decoder."""
    if getattr(language_model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(language_model).__name__} is an encoder-decoder: only causal models are read")
    backbone: nn.Module = language_model.get_decoder()
    return backbone


def blocks_of(language_model: Any) -> nn.ModuleList:
    """Return the decoder's blocks in their order, or raise ``ValueError`` where they do not stand in one list."""
    backbone = backbone_of(language_model)
    depth = language_model.config.get_text_config().num_hidden_layers
    for child in backbone.children():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return child
    raise ValueError(f"the blocks of {type(backbone).__name__} were not found: name the submodule to read instead")


def refuse_sharded(model: nn.Module) -> None:
    """Raise ``ValueError`` for parameters in shards: what one process computes alone would wait for the others."""
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) or is_partitioned(p) for p in model.parameters()):
        raise ValueError("the model's parameters are sharded over processes: trace its checkpoints instead")


def refuse_unsupported(model: nn.Module) -> None:
    """Raise ``ValueError`` for FSDP1 and prompt-learning adapters."""
    for child in model.modules():
        if type(child).__name__ == "FullyShardedDataParallel":
            raise ValueError("FullyShardedDataParallel cannot be read: shard by fully_shard (fsdp_version: 2)")
        adapters = getattr(child, "peft_config", None)
        if isinstance(adapters, dict) and any(getattr(a, "is_prompt_learning", False) for a in adapters.values()):
            kind = type(child).__name__
            raise ValueError(f"{kind} learns virtual tokens, which the backbone never sees: use weights such as LoRA")
