"""How a whole model is called on tokens: itself, through what it is sharded in, or as a plain module."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from geomcallbacks.reading.locate import is_language_model

#: What a model raises that is called as it is not meant to be. Anything else, such as memory, is no such thing.
CALLED_WRONGLY = (TypeError, ValueError, AttributeError, NotImplementedError)


def call_whole(
    language_model: nn.Module,
    entry: nn.Module,
    input_ids_bt: Tensor,
    mask_bt: Tensor | None,
    *,
    head: bool = False,
    states: bool = False,
) -> Any:
    """Call a language model, from outside where `entry` is what it is sharded in.

    Args:
        language_model: the model.
        entry: itself, or what holds it.
        input_ids_bt: the tokens.
        mask_bt: 1 for real tokens; None: all are.
        head: have every state enter the head, and not the last alone, where that can be told.
        states: ask for its `hidden_states`.
    """
    known, taken = (inspect.signature(module.forward).parameters for module in (language_model, entry))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    model_takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if not takes_any and "input_ids" not in taken:
        return call_plain(entry, input_ids_bt, mask_bt)
    wanted = {"attention_mask": mask_bt} | ({} if head else {"logits_to_keep": 1})
    # Most models take these among others that they do not name.
    unnamed = {"use_cache": False} | ({"output_hidden_states": True, "return_dict": True} if states else {})
    known_too = dict(known) | (dict.fromkeys(unnamed) if model_takes_any else {})
    options = {name: value for name, value in (wanted | unnamed).items() if name in known_too}
    return entry(input_ids=input_ids_bt, **{name: options[name] for name in options if takes_any or name in taken})


def call_plain(model: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call any module on the tokens, with the mask where it takes one."""
    accepted = inspect.signature(model.forward).parameters
    return model(input_ids_bt, attention_mask=mask_bt) if "attention_mask" in accepted else model(input_ids_bt)


def cannot_call(model: nn.Module, error: Exception) -> str:
    """Say what to do about a model that cannot be called with tokens alone."""
    parts = [(path, child) for path, child in model.named_modules() if path and is_language_model(child)]
    listed = ", ".join(f"module={path!r} ({type(child).__name__})" for path, child in parts if path.count(".") < 2)
    reason = f"{type(model).__name__} cannot be called with tokens alone ({type(error).__name__}: {error})"
    by_name = f", or name a part that can, {listed}" if listed else ""
    return f"{reason}: give forward=lambda model, ids, mask: …{by_name}"
