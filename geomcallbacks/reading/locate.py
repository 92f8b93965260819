"""Which module of a model is called, and where in it hidden states are read.

Language models are told by their class, without importing Transformers; what cannot be read is refused here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geomcallbacks.reading.zero3 import is_partitioned

Layers = int | str | Sequence[int | str]


def layer_list(layers: Layers) -> list[int | str]:
    """One layer or several, as a list."""
    return list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]


@dataclass(frozen=True)
class ReadPoint:
    """Where one layer's states are taken: the `side` ("input" or "output") of the module called `name`."""

    label: str
    name: str
    module: nn.Module
    side: str


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel, DeepSpeed and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif "DeepSpeedEngine" in {kind.__name__ for kind in type(model).__mro__}:
            model = model.module  # type: ignore[assignment]
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def is_language_model(module: nn.Module) -> bool:
    """Whether this is a PreTrainedModel, told by its class: PEFT's wrappers forward attributes of what they wrap."""
    return hasattr(type(module), "base_model_prefix") and hasattr(type(module), "get_input_embeddings")


def find_root(model: nn.Module, name: str | None, by_name: bool) -> tuple[str, nn.Module]:
    """The module that layers are counted in, and its path: the one called `name`, else the only language model.

    Args:
        model: the whole model.
        name: what the caller named, if anything.
        by_name: the caller names what is read, so that `model` itself serves where it holds no language model.

    Raises:
        ValueError: there is no such submodule, or no language model, or more than one.
    """
    if name is not None:
        return name, submodule(model, name, argument="module")
    if by_name and not any(is_language_model(child) for child in model.modules()):
        return "", model
    found: list[tuple[str, nn.Module]] = []
    for path, child in model.named_modules():
        nested = any(path.startswith(f"{outer}.") or outer == "" for outer, _ in found)
        if is_language_model(child) and not nested:
            found.append((path, child))
    with_head = [(path, child) for path, child in found if child.get_output_embeddings() is not None]  # type: ignore[operator]
    candidates = with_head or found
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        children = ", ".join(f"{path} ({type(child).__name__})" for path, child in model.named_children())
        raise ValueError(
            f"no causal language model of Transformers was found in {type(model).__name__}: name the submodule whose"
            f" output is to be read, module=<name>. Its children: {children or 'none'}"
        )
    listed = ", ".join(f"module={path!r} ({type(child).__name__})" for path, child in candidates)
    raise ValueError(f"{type(model).__name__} holds {len(candidates)} language models: choose one, {listed}")


def submodule(root: nn.Module, name: str, argument: str = "layers") -> nn.Module:
    """The submodule of that name, or ``ValueError`` with the near names. `argument` is what the caller calls it."""
    modules = dict(root.named_modules())
    if name in modules:
        return unwrap(modules[name])
    near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"it has {', '.join(list(modules)[1:6])}, …"
    raise ValueError(f"{argument}={name!r} is no submodule of {type(root).__name__}: {hint}")


def vocabulary_of(language_model: Any) -> int | None:
    """How many token ids the model knows, or None where its embedding does not say."""
    # PEFT's wrappers of an embedding hide num_embeddings, but not the weight.
    weight = getattr(language_model.get_input_embeddings(), "weight", None)
    shape: Sequence[int] = getattr(weight, "ds_shape", getattr(weight, "shape", ()))  # ZeRO-3 leaves an empty tensor
    return int(shape[0]) if isinstance(weight, Tensor) and len(shape) == 2 else None


def longest_of(language_model: Any) -> int | None:
    """Tokens that the table of learned positions reaches; None for rotary positions, which do not end."""
    if any("RotaryEmbedding" in type(child).__name__ for child in language_model.modules()):
        return None
    return getattr(language_model.config.get_text_config(), "max_position_embeddings", None)


def backbone_of(language_model: Any) -> nn.Module:
    """The decoder without its head. Raises ``ValueError`` for an encoder-decoder."""
    if getattr(language_model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(language_model).__name__} is an encoder-decoder: only causal models are read")
    backbone: nn.Module = language_model.get_decoder()
    return backbone


def blocks_of(language_model: Any) -> nn.ModuleList:
    """The blocks of the decoder, in their order. Raises ``ValueError`` where they do not stand in one list."""
    backbone = backbone_of(language_model)
    depth = language_model.config.get_text_config().num_hidden_layers
    for child in backbone.children():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return child
    raise ValueError(f"the blocks of {type(backbone).__name__} were not found: name the submodule to read instead")


def block_point(root_name: str, language_model: Any, layer: int) -> ReadPoint:
    """Where layer `layer` is read, counted as in Transformers' `hidden_states`. Raises ``ValueError`` outside them."""
    backbone = backbone_of(language_model)
    depth = language_model.config.get_text_config().num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"layers={layer} is not in {type(language_model).__name__}, which has {depth} blocks: give 0 to {depth}, or"
            f" -1 to {-depth - 1}"
        )
    index = layer % (depth + 1)
    names = {child: name for name, child in language_model.named_modules()}
    path = ".".join(part for part in (root_name, names[backbone]) if part)
    if index == depth:
        return ReadPoint(f"layer{index}", path or type(backbone).__name__, backbone, "output")
    block = blocks_of(language_model)[max(index - 1, 0)]
    name = ".".join(part for part in (root_name, names[block]) if part)
    return ReadPoint(f"layer{index}", name, block, "output" if index else "input")


def refuse_sharded(model: nn.Module) -> None:
    """Raise ``ValueError`` for parameters that are shared out over processes: what one process computes alone would
    wait for the others.
    """
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) or is_partitioned(p) for p in model.parameters()):
        raise ValueError(
            "the model's parameters are sharded over processes (FSDP, tensor parallel, ZeRO-3): behaviour is measured"
            " by one process and would wait for the others; measure it on saved checkpoints (geomcallbacks trace)"
        )


def refuse_unsupported(model: nn.Module) -> None:
    """Raise ``ValueError`` for FSDP1 and prompt-learning adapters."""
    if "FullyShardedDataParallel" in {type(child).__name__ for child in model.modules()}:
        raise ValueError("the model is wrapped by FullyShardedDataParallel: shard it by fully_shard (fsdp_version: 2)")
    for child in model.modules():
        adapters = getattr(child, "peft_config", None)
        if isinstance(adapters, dict) and any(getattr(a, "is_prompt_learning", False) for a in adapters.values()):
            raise ValueError(
                f"{type(child).__name__} learns virtual tokens in front of the text, which a probe of the backbone"
                " would leave out: measure models with weight adapters such as LoRA"
            )
