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

from geomcallbacks.probe import ProbeBatch
from geomcallbacks.probing.positions import Positions, picked, position_count
from geomcallbacks.reading.device import device_of, send
from geomcallbacks.reading.locate import (
    Layers,
    ReadPoint,
    backbone_of,
    block_point,
    find_root,
    is_language_model,
    layer_list,
    longest_of,
    refuse_unsupported,
    submodule,
    unwrap,
    vocabulary_of,
)
from geomcallbacks.reading.sharding import Spread, entry_of, spread_of

#: Calls a model on tokens: (model, input_ids (b, t), attention_mask (b, t)) -> anything; hooks read the states.
ForwardFn = Callable[[nn.Module, Tensor, Tensor], Any]


class _AllRead(BaseException):
    """Ends a forward pass from a hook, once every layer asked for is read. No ``except Exception`` may hold it."""


class Reader:
    """What is called, and where it is read.

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
        spread: how the model is spread over processes.
        vocabulary, longest: token ids and positions that the model knows, where it says.

    Raises:
        ValueError: no causal language model or several, an unknown layer or module, a model that cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = -1,
        module: str | None = None,
        forward: ForwardFn | None = None,
    ) -> None:
        self.spread: Spread = spread_of(model)
        model = unwrap(model)
        refuse_unsupported(model)
        wanted = layer_list(layers)
        if not wanted:
            raise ValueError("layers=[] reads nothing: give a layer, or -1 for the last")
        all_names = all(isinstance(layer, str) for layer in wanted)
        root_name, root = find_root(model, module, by_name=forward is not None or all_names)
        self.vocabulary: int | None = None
        self.longest: int | None = None
        self._reads_backbone = is_language_model(root) and forward is None
        self._resolve_call(model, root, forward)
        # A module may run more than once in a pass, and the last time counts; a block of a language model runs once.
        # Accelerate's own hooks must see the end of a block whose weights they had brought in.
        numbered = self._reads_backbone and not any(isinstance(layer, str) for layer in wanted)
        offloads = any(hasattr(child, "_hf_hook") for child in self.called.modules())
        self._stops_early = numbered and not self.spread.sharded and not offloads
        self.points = [self._point(root_name, root, layer) for layer in wanted]
        labels = [point.label for point in self.points]
        if len(set(labels)) < len(labels):
            raise ValueError(f"layers={layers!r} names a layer twice ({', '.join(labels)}): name each once")

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
        select = _selector(batch, positions, device)
        ids_bt = send(batch.input_ids_bt, device)
        # Without padding a mask says nothing, and attention without one may take a faster way.
        needed = batch.padded or not self._reads_backbone
        mask_bt = send(batch.mask_bt, device) if needed else None
        features: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for point in self.points:
                stack.callback(self._hook(point, select, batch, features).remove)
            with suppress(_AllRead):
                self._forward(self.called, ids_bt, mask_bt)
        missing = [point.name for point in self.points if point.label not in features]
        if missing:
            raise ValueError(
                f"layer {missing[0]!r} was not reached by the forward pass: read another, or give forward="
            )
        origin = batch.rows_b.repeat_interleave(position_count(batch.lengths_b, positions))
        return features, origin

    def _resolve_call(self, model: nn.Module, root: nn.Module, forward: ForwardFn | None) -> None:
        self.called: nn.Module = model
        self._forward: Callable[[nn.Module, Tensor, Any], Any] = forward or _call_plain
        if not self._reads_backbone:
            return
        backbone = backbone_of(root)
        self.vocabulary, self.longest = vocabulary_of(root), longest_of(root)
        self.called, self._forward = backbone, _call_backbone
        if self.spread.sharded:
            self.called, self._forward = entry_of(model, root), partial(_call_entry, root)

    def _point(self, root_name: str, root: nn.Module, layer: int | str) -> ReadPoint:
        if isinstance(layer, str):
            return ReadPoint(layer, layer, submodule(root, layer), "output")
        if not is_language_model(root):
            if layer != -1:
                raise ValueError(
                    f"layers={layer} counts the blocks of a Transformers model, and {type(root).__name__} is none: name"
                    " the submodule to read instead"
                )
            return ReadPoint(root_name or "output", root_name, root, "output")
        return block_point(root_name, root, layer)

    def _hook(
        self,
        point: ReadPoint,
        select: Callable[[Tensor], Tensor],
        batch: ProbeBatch,
        features: dict[str, Tensor],
    ) -> torch.utils.hooks.RemovableHandle:
        def keep(value: Any) -> None:
            hidden = getattr(value, "last_hidden_state", value)
            hidden = hidden[0] if isinstance(hidden, (tuple, list)) else hidden
            expected = tuple(batch.input_ids_bt.shape)
            if not isinstance(hidden, Tensor) or hidden.ndim != 3 or tuple(hidden.shape[:2]) != expected:
                got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
                raise ValueError(
                    f"layer {point.name!r} gives {got}, not states of shape {(*expected, 'd')}: read another"
                )
            if hasattr(hidden, "full_tensor"):  # a DTensor: tensor parallelism may leave states in parts
                hidden = hidden.full_tensor()
            features[point.label] = select(hidden.detach())
            if self._stops_early and len(features) == len(self.points) and point.module is not self.called:
                raise _AllRead

        if point.side == "output":
            return point.module.register_forward_hook(lambda module, args, output: keep(output))
        return point.module.register_forward_pre_hook(
            lambda module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )


def _call_backbone(backbone: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    return backbone(input_ids=input_ids_bt, attention_mask=mask_bt, use_cache=False)


def _call_entry(language_model: nn.Module, entry: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    """Call a sharded model from outside, with as little of its head as it can be told to compute."""
    known = inspect.signature(language_model.forward).parameters
    taken = inspect.signature(entry.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if not takes_any and "input_ids" not in taken:
        return _call_plain(entry, input_ids_bt, mask_bt)
    asked = {"attention_mask": mask_bt, "use_cache": False, "logits_to_keep": 1}
    said = {name: value for name, value in asked.items() if name in known and (takes_any or name in taken)}
    return entry(input_ids=input_ids_bt, **said)


def _call_plain(model: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor | None) -> Any:
    accepted = inspect.signature(model.forward).parameters
    return model(input_ids_bt, attention_mask=mask_bt) if "attention_mask" in accepted else model(input_ids_bt)


def _selector(batch: ProbeBatch, positions: Positions, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from hidden states (b, t, d) to the features (m, d) of the wanted positions."""
    if positions == "mean":
        keep_bt1 = batch.mask_bt.bool()[..., None]
        keep_bt1[:, 0] = False
        keep_bt1 = send(keep_bt1, device)

        def mean(hidden_btd: Tensor) -> Tensor:
            # A masked sum, not a product with weights: autocast would round that, and 0 · inf in a padding is NaN.
            wide_btd = hidden_btd.to(torch.promote_types(hidden_btd.dtype, torch.float32))
            kept_bt1 = keep_bt1.to(hidden_btd.device)  # a layer may lie on another device than the first
            return wide_btd.masked_fill(~kept_bt1, 0.0).sum(1) / kept_bt1.sum(1)

        return mean
    row, position = (send(part, device) for part in picked(batch.lengths_b, positions))
    return lambda hidden_btd: hidden_btd[row.to(hidden_btd.device), position.to(hidden_btd.device)]
