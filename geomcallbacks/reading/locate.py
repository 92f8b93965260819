"""What kind of model it is, which module layers are counted in, and where in it hidden states are read.

Language models are told by their class, without importing Transformers; what cannot be read is refused here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geomcallbacks.reading.evidence import Place, Side
from geomcallbacks.reading.zero3 import is_partitioned

Layers = int | str | Sequence[int | str]


@dataclass(frozen=True)
class ReadPoint:
    """Where one layer's states are taken: at the `side` of the module called `name`. `last`: it is what -1 reads."""

    label: str
    name: str
    module: nn.Module
    side: Side
    last: bool = False


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


def head_of(language_model: Any) -> nn.Module | None:
    """Return the head that turns states into logits; None where there is none."""
    try:
        head: nn.Module | None = language_model.get_output_embeddings()
    except NotImplementedError:  # of models of several parts
        return None
    return head


def find_root(model: nn.Module, name: str | None, by_name: bool) -> tuple[str, nn.Module]:
    """Return the path and the module that layers are counted in: the one called `name`, else the only language model.

    Args:
        model: the whole model.
        name: what the caller named, if anything.
        by_name: `model` itself serves where it holds no language model.

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
    candidates = [(path, child) for path, child in found if head_of(child) is not None] or found
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(f"module={path!r} ({type(child).__name__})" for path, child in candidates)
        raise ValueError(f"{type(model).__name__} holds {len(candidates)} language models: choose one, {listed}")
    raise ValueError(none_found(model))


def none_found(model: nn.Module) -> str:
    """Say that a model holds no language model, and what of it may be read instead."""
    children = ", ".join(f"{path} ({type(child).__name__})" for path, child in model.named_children())
    return (
        f"no causal language model in {type(model).__name__}: name what is read, module=<name>, of {children or 'none'}"
    )


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


def join(*names: str) -> str:
    """Return the path of a module inside another."""
    return ".".join(name for name in names if name)


def expected(language_model: nn.Module, index: int, count: int) -> Place | None:
    """Return where hidden state `index` of `count` is looked for first; None where blocks do not stand in one list.

    0 enters the first block, i leaves block i, and the last leaves the backbone.
    """
    names = {child: name for name, child in language_model.named_modules()}
    if index == count - 1:
        return names[backbone_of(language_model)], "output"
    blocks = blocks_of(language_model)
    if not blocks or index > len(blocks):
        return None
    return names[blocks[max(index - 1, 0)]], "output" if index else "input"


def check_tokens(language_model: Any, name: str, largest: int, longest: int) -> None:
    """Raise ``ValueError`` where the model's vocabulary, or its learned positions, do not reach as far as some rows.

    Args:
        language_model: the model. Rotary positions do not end, and some embeddings do not show their vocabulary: those
            are not checked.
        name: what holds the rows.
        largest: their largest token id.
        longest: tokens of the longest of them.
    """
    try:  # PEFT's wrappers of an embedding hide num_embeddings, but not the weight.
        weight = getattr(language_model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # of models of several parts
        weight = None
    shape: Sequence[int] = getattr(weight, "ds_shape", getattr(weight, "shape", ()))  # ZeRO-3 leaves an empty tensor
    if isinstance(weight, Tensor) and len(shape) == 2 and largest >= shape[0]:
        ends = f"the model's vocabulary ends at {shape[0] - 1}"
        raise ValueError(f"{name} holds token id {largest}, and {ends}: build it with the model's own tokenizer")
    positions = getattr(language_model.config.get_text_config(), "max_position_embeddings", None)
    rotary = any("RotaryEmbedding" in type(child).__name__ for child in language_model.modules())
    limited = isinstance(positions, int) and not rotary and 0 < positions < longest  # XLNet's -1: they do not end
    if limited:  # on CUDA, reading past it ends the process
        reach = f"and the model has {positions} positions"
        raise ValueError(f"{name} has a row of {longest} tokens, {reach}: shorten it, as max_length={positions} does")


def backbone_of(language_model: Any) -> nn.Module:
    """Return the decoder without its head, itself where none is told apart; ``ValueError`` for an encoder-decoder."""
    kind = type(language_model).__name__
    if "decoder_input_ids" in inspect.signature(language_model.forward).parameters:
        line = "layers='encoder', forward=lambda model, ids, mask: model.get_encoder()(ids, attention_mask=mask)"
        raise ValueError(f"{kind} is an encoder-decoder: only causal models are read. Its encoder is read by {line}")
    candidates: list[nn.Module] = [language_model.get_decoder()]
    if head_of(language_model) is not None:
        # get_decoder() may give the model itself (Llama 4) or its head (ModernBERT's decoder).
        entered = language_model.get_input_embeddings()
        holding = [child for child in language_model.children() if any(part is entered for part in child.modules())]
        candidates = [c for c in (*candidates, language_model.base_model, *holding) if c is not language_model]
    return next(filter(is_language_model, candidates), language_model)


def blocks_of(language_model: Any) -> Sequence[nn.Module]:
    """Return the decoder's blocks in their order; none where they do not stand in one list."""
    lists = [child for child in backbone_of(language_model).children() if isinstance(child, nn.ModuleList)]
    depth = getattr(language_model.config.get_text_config(), "num_hidden_layers", None)
    of_depth = [child for child in lists if len(child) == depth]
    # An encoder's depth may stand in the config of a decoder alone (BART).
    return next(iter(of_depth or (lists if len(lists) == 1 else ())), ())  # type: ignore[arg-type]


def has_flex_attention(model: nn.Module) -> bool:
    """Whether a part of the model attends by `torch.nn.attention.flex_attention`, which compiles itself."""
    configs = (getattr(child, "config", None) for child in model.modules())
    return any(getattr(config, "_attn_implementation", None) == "flex_attention" for config in configs)


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
