"""How a model is called on token rows: with as little as possible behind the states that are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

#: Calls a model on tokens: (model, input_ids (b, t), attention_mask (b, t)) -> anything; hooks read the states.
ForwardFn = Callable[[nn.Module, Tensor, Tensor], Any]


def call_backbone(backbone: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call the decoder of a Transformers model: neither logits nor a cache are computed."""
    return backbone(input_ids=input_ids_bt, attention_mask=mask_bt, use_cache=False)


def call_entry(language_model: nn.Module, entry: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call a sharded model from outside, with as little of its head as it can be told to compute."""
    known = inspect.signature(language_model.forward).parameters
    taken = inspect.signature(entry.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if not takes_any and "input_ids" not in taken:
        return call_plain(entry, input_ids_bt, mask_bt)
    wanted = {"attention_mask": mask_bt, "use_cache": False, "logits_to_keep": 1}
    options = {name: value for name, value in wanted.items() if name in known and (takes_any or name in taken)}
    return entry(input_ids=input_ids_bt, **options)


def call_plain(model: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call any module on the tokens, with the mask where it takes one."""
    accepted = inspect.signature(model.forward).parameters
    return model(input_ids_bt, attention_mask=mask_bt) if "attention_mask" in accepted else model(input_ids_bt)
