"""A model and a probe batch in, features of the chosen layers and positions out, no trace left on the model.

`Reader` resolves once what is called and where it is read; `Reader.read` runs one batch. Hooks exist only while a
batch runs, only the wanted positions leave the hooked layer, blocks behind the deepest layer that is read do not run,
and neither LM head nor cache is computed for the causal language models of Transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomcallbacks.probe import ProbeBatch
from geomcallbacks.reading import locate
from geomcallbacks.reading.autocast import arithmetic_of
from geomcallbacks.reading.device import device_of, send
from geomcallbacks.reading.positions import Positions, pick_positions, position_count
from geomcallbacks.reading.sharding import entry_of, spread_of

#: Calls a model on tokens: (model, input_ids (b, t), attention_mask (b, t)) -> anything; hooks read the states.
ForwardFn = Callable[[nn.Module, Tensor, Tensor], Any]


class _AllRead(BaseException):
    """Ends a forward pass from a hook, once every layer asked for is read. No ``except Exception`` may hold it."""


class Reader:
    """What is called, and where it is read. Nothing of a measurement is kept here: one reader serves a whole run.

    The only causal language model found inside `model` is called without its head; where its parameters are sharded,
    through the outermost sharded module and with logits of the last position alone. `layers` counts as Transformers'
    `hidden_states` do: 0 is what enters the first block, i what leaves block i, and -1 (or the number of blocks) the
    backbone's output, after its final norm where it has one. A name takes the output of that submodule. Any other
    module is called whole (through `forward` where it does not take `input_ids`) and read at the submodules named by
    `layers`, or by `module` when `layers` is left at -1.

    Args:
        model: the model as the training loop holds it: wrapped by DDP, PEFT or torch.compile, or a LightningModule.
        layers: one layer or several.
        module: name of the submodule to read, where it cannot be found or where there are several.
        forward: how to call a model that does not take `input_ids`.

    Attributes:
        called: the module that is called.
        points: where it is read.
        last: what the last layer, -1, is called.
        arithmetic: that of the training loop, where its wrapper shows it.
        spread: how the model is spread over processes.
        language_model: the language model that is read; None where it is another module.

    Raises:
        ValueError: no causal language model or several, an unknown layer or module, a model that cannot be read.
    """

    def __init__(
        self, model: nn.Module, layers: locate.Layers = -1, module: str | None = None, forward: ForwardFn | None = None
    ) -> None:
        self.spread = spread_of(model)
        whole, model = model, locate.unwrap(model)
        locate.refuse_unsupported(model)
        named = [isinstance(layer, str) for layer in locate.layer_list(layers)]
        root_name, root = locate.find_root(model, module, by_name=forward is not None or all(named))
        self.called: nn.Module = model
        self._forward: Callable[[nn.Module, Tensor, Any], Any] = forward or _call_plain
        self.language_model = root if locate.is_language_model(root) and forward is None else None
        if self.language_model is not None:
            self.called, self._forward = locate.backbone_of(root), _call_backbone
            if self.spread.sharded:
                self.called, self._forward = entry_of(model, root), partial(_call_entry, root)
        self.arithmetic = arithmetic_of(whole, device_of(self.called))
        self.points = locate.read_points(root_name, root, layers)
        self.last = locate.read_points(root_name, root, -1)[0].label
        # A module may run more than once in a pass, and the last time counts; a block of a language model runs once.
        # Accelerate's own hooks must see the end of a block whose weights they had brought in.
        offloads = any(hasattr(child, "_hf_hook") for child in self.called.modules())
        by_blocks = self.language_model is not None and not any(named)
        self._stops_early = by_blocks and not self.spread.sharded and not offloads

    @torch.no_grad()
    def read(self, batch: ProbeBatch, positions: Positions) -> tuple[dict[str, Tensor], Tensor]:
        """Run one batch.

        Args:
            batch: the rows.
            positions: which positions are kept; see `positions.py`.

        Returns:
            Features (m, d) for each layer's label, in the model's own dtype and on its device, and the probe row (m,)
            that each came from, on the CPU.

        Raises:
            ValueError: a layer gave something other than a (b, t, d) tensor, or was not reached.
        """
        device = device_of(self.called)
        pick = pick_positions(batch, positions, device)
        ids_bt = send(batch.input_ids_bt, device)
        # Without padding a mask says nothing, and attention without one may take a faster way.
        needed = batch.padded or self.language_model is None
        mask_bt = send(batch.mask_bt, device) if needed else None
        features: dict[str, Tensor] = {}

        def keep(point: locate.ReadPoint, value: Any) -> None:
            features[point.label] = pick(_hidden_states(point, value, batch))
            if self._stops_early and len(features) == len(self.points) and point.module is not self.called:
                raise _AllRead

        with ExitStack() as stack:
            for point in self.points:
                stack.callback(_hook(point, partial(keep, point)).remove)
            with suppress(_AllRead):
                self._forward(self.called, ids_bt, mask_bt)
        missing = next((point.name for point in self.points if point.label not in features), None)
        if missing is not None:
            raise ValueError(f"layer {missing!r} was not reached by the forward pass: read another, or give forward=")
        return features, batch.rows_b.repeat_interleave(position_count(batch.lengths_b, positions))


def _hidden_states(point: locate.ReadPoint, value: Any, batch: ProbeBatch) -> Tensor:
    """Return the hidden states (b, t, d) in what passes a hook, or raise ``ValueError`` where there are none."""
    hidden = getattr(value, "last_hidden_state", value)
    hidden = hidden[0] if isinstance(hidden, (tuple, list)) else hidden
    expected = tuple(batch.input_ids_bt.shape)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3 or tuple(hidden.shape[:2]) != expected:
        got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(f"layer {point.name!r} gives {got}, not states of shape {(*expected, 'd')}: read another")
    if hasattr(hidden, "full_tensor"):  # a DTensor: tensor parallelism may leave states in parts
        hidden = hidden.full_tensor()
    return hidden.detach()  # type: ignore[no-any-return]


def _hook(point: locate.ReadPoint, keep: Callable[[Any], None]) -> RemovableHandle:
    """Have `keep` called with what passes a point."""
    if point.side == "output":
        return point.module.register_forward_hook(lambda module, args, output: keep(output))
    return point.module.register_forward_pre_hook(
        lambda module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )


def _call_backbone(backbone: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call the decoder of a Transformers model: neither logits nor a cache are computed."""
    return backbone(input_ids=input_ids_bt, attention_mask=mask_bt, use_cache=False)


def _call_entry(language_model: nn.Module, entry: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call a sharded model from outside, with as little of its head as it can be told to compute."""
    known = inspect.signature(language_model.forward).parameters
    taken = inspect.signature(entry.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if not takes_any and "input_ids" not in taken:
        return _call_plain(entry, input_ids_bt, mask_bt)
    wanted = {"attention_mask": mask_bt, "use_cache": False, "logits_to_keep": 1}
    options = {name: value for name, value in wanted.items() if name in known and (takes_any or name in taken)}
    return entry(input_ids=input_ids_bt, **options)


def _call_plain(model: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call any module on the tokens, with the mask where it takes one."""
    accepted = inspect.signature(model.forward).parameters
    return model(input_ids_bt, attention_mask=mask_bt) if "attention_mask" in accepted else model(input_ids_bt)
