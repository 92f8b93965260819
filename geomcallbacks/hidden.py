"""A model and a probe batch in, features of the chosen layers and positions out, no trace left on the model.

`Reader` resolves once what is called and where it is read; `Reader.read` runs one batch. Hooks exist only while a
batch runs, only the wanted positions leave the hooked layer, and neither LM head nor cache is computed for the causal
language models of Transformers.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geomcallbacks.locate import (
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
from geomcallbacks.probe import ProbeBatch

Positions = str | int
#: Calls a model on tokens: (model, input_ids (b, t), attention_mask (b, t)) -> anything; hooks read the states.
ForwardFn = Callable[[nn.Module, Tensor, Tensor], Any]


class Reader:
    """What is called, and where it is read.

    The only causal language model found inside `model` is called without its head. `layers` counts as Transformers'
    `hidden_states` do: 0 is what enters the first block, i what leaves block i, and -1 (or the number of blocks) the
    backbone's output, after its final norm where it has one. A name takes the output of that submodule. Any other
    module is called whole (through `forward` where it does not take `input_ids`) and read at the submodules named by
    `layers`, or by `module` when `layers` is left at -1.

    Args:
        model: the model as the training loop holds it: wrapped by DDP, PEFT or torch.compile, or a LightningModule.
        layers: one layer or several.
        module: name of the submodule to read, where it cannot be found or where there are several.
        forward: how to call a model that does not take `input_ids`.

    Raises:
        ValueError: no causal language model or several, an unknown layer or module, a sharded model.
    """

    def __init__(
        self, model: nn.Module, layers: Layers = -1, module: str | None = None, forward: ForwardFn | None = None
    ) -> None:
        model = unwrap(model)
        refuse_unsupported(model)
        wanted = layer_list(layers)
        if not wanted:
            raise ValueError("layers=[] reads nothing: give a layer, or -1 for the last")
        all_names = all(isinstance(layer, str) for layer in wanted)
        root_name, root = find_root(model, module, by_name=forward is not None or all_names)
        self.called: nn.Module
        if is_language_model(root) and forward is None:
            self.called = backbone_of(root)
            self.vocabulary: int | None = vocabulary_of(root)
            self.longest: int | None = longest_of(root)
            self._forward: ForwardFn = _call_backbone
        else:
            self.called = model
            self.vocabulary = self.longest = None
            self._forward = forward or _call_plain
        self.points = [self._point(root_name, root, layer) for layer in wanted]
        labels = [point.label for point in self.points]
        if len(set(labels)) < len(labels):
            raise ValueError(f"layers={layers!r} names a layer twice ({', '.join(labels)}): name each once")

    @torch.no_grad()
    def read(self, batch: ProbeBatch, positions: Positions) -> tuple[dict[str, Tensor], Tensor]:
        """Run one batch.

        Args:
            batch: the rows.
            positions: which positions are kept; see `position_index`.

        Returns:
            Features (m, d) for each layer's label, in the model's own dtype and on its device, and the probe row (m,)
            that each came from.

        Raises:
            ValueError: a layer gave something other than a (b, t, d) tensor, or was not reached.
        """
        device = next((p.device for p in self.called.parameters()), torch.device("cpu"))
        select = _selector(batch, positions, device)
        features: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for point in self.points:
                stack.callback(_hook(point, select, batch, features).remove)
            self._forward(self.called, batch.input_ids_bt.to(device), batch.mask_bt.to(device))
        missing = [point.name for point in self.points if point.label not in features]
        if missing:
            raise ValueError(
                f"layer {missing[0]!r} was not reached by the forward pass: read another, or give forward="
            )
        origin = batch.rows_b.repeat_interleave(position_count(batch.lengths_b, positions))
        return features, origin

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


def position_count(lengths_n: Tensor, positions: Positions) -> Tensor:
    """How many features each row of so many real tokens gives, (n,)."""
    if positions == "all":
        return lengths_n - 1
    return torch.full_like(lengths_n, positions if isinstance(positions, int) else 1)


def check_positions(positions: Positions, lengths_n: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless `positions` is known and every row is long enough for it."""
    if isinstance(positions, bool) or not (
        positions in ("last", "all", "mean") or (isinstance(positions, int) and positions >= 1)
    ):
        raise ValueError(f"positions={positions!r} is unknown: give 'last', 'all', 'mean' or a positive number")
    if isinstance(positions, int) and lengths_n is not None and int(lengths_n.min()) < positions + 1:
        raise ValueError(
            f"positions={positions} needs rows of at least {positions + 1} tokens, and the probe has one of"
            f" {int(lengths_n.min())}: take fewer positions or build the probe with min_length={positions + 1}"
        )


def position_index(lengths_b: Tensor, k: int) -> Tensor:
    """(b, k) 0-based positions ⌈L·j/k⌉ − 1, j = 1 … k, of rows of L real tokens; the last of them is the last token."""
    j = torch.arange(1, k + 1)
    return (lengths_b[:, None] * j + k - 1) // k - 1


@contextmanager
def leave_no_trace(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and everything as it was outside: each submodule's own mode, attributes and buffers, and
    every random state.

    Compiled submodules run eagerly inside: a hook added after the first compiled call would never fire, and the
    probe's shapes would make the training graphs dynamic.
    """
    # Modes are attributes too; dynamic RoPE replaces buffers and attributes for a row longer than any before.
    before = [(child, dict(vars(child)), dict(child._buffers)) for child in module.modules()]
    cuda = {p.device for p in module.parameters() if p.device.type == "cuda"}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device.index for device in cuda]))
        if "torch._dynamo" in sys.modules:  # nothing is compiled before that is loaded, and loading takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for child, _, _ in before:
                child.training = False
            yield
        finally:
            for child, attributes, buffers in before:
                vars(child).update(attributes)
                child._buffers.clear()
                child._buffers.update(buffers)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _call_backbone(backbone: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor) -> Any:
    return backbone(input_ids=input_ids_bt, attention_mask=mask_bt, use_cache=False)


def _call_plain(model: nn.Module, input_ids_bt: Tensor, mask_bt: Tensor) -> Any:
    accepted = inspect.signature(model.forward).parameters
    return model(input_ids_bt, attention_mask=mask_bt) if "attention_mask" in accepted else model(input_ids_bt)


def _selector(batch: ProbeBatch, positions: Positions, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from hidden states (b, t, d) to the features (m, d) of the wanted positions."""
    if positions == "mean":
        keep_bt1 = batch.mask_bt.bool()[..., None].to(device)
        keep_bt1[:, 0] = False

        def mean(hidden_btd: Tensor) -> Tensor:
            # A masked sum, not a product with weights: autocast would round that, and 0 · inf in a padding is NaN.
            wide_btd = hidden_btd.to(torch.promote_types(hidden_btd.dtype, torch.float32))
            return wide_btd.masked_fill(~keep_bt1, 0.0).sum(1) / keep_bt1.sum(1)

        return mean
    if positions == "all":
        keep = batch.mask_bt.bool()
        keep[:, 0] = False
        row, position = keep.nonzero(as_tuple=True)
    else:
        index_bk = position_index(batch.lengths_b, positions if isinstance(positions, int) else 1)
        row = torch.arange(len(index_bk)).repeat_interleave(index_bk.shape[1])
        position = index_bk.flatten()
    row, position = row.to(device), position.to(device)
    return lambda hidden_btd: hidden_btd[row, position]


def _hook(
    point: ReadPoint, select: Callable[[Tensor], Tensor], batch: ProbeBatch, features: dict[str, Tensor]
) -> torch.utils.hooks.RemovableHandle:
    def keep(value: Any) -> None:
        hidden = getattr(value, "last_hidden_state", value)
        hidden = hidden[0] if isinstance(hidden, (tuple, list)) else hidden
        expected = tuple(batch.input_ids_bt.shape)
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or tuple(hidden.shape[:2]) != expected:
            got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise ValueError(f"layer {point.name!r} gives {got}, not states of shape {(*expected, 'd')}: read another")
        features[point.label] = select(hidden.detach())

    if point.side == "output":
        return point.module.register_forward_hook(lambda module, args, output: keep(output))
    return point.module.register_forward_pre_hook(
        lambda module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
