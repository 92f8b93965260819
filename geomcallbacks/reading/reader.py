"""A model and a probe batch in, features of the chosen layers and positions out, no trace left on the model.

`Reader` finds once what is called and where it is read, by a trial pass over one short row; `Reader.read` runs one
batch. Hooks exist only while a batch runs, only the wanted positions leave the hooked layer, blocks behind the deepest
layer that is read do not run, and neither LM head nor cache is computed for the causal language models of Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomcallbacks.probe import ProbeBatch
from geomcallbacks.reading import locate
from geomcallbacks.reading.autocast import arithmetic_of
from geomcallbacks.reading.calling import CALLED_WRONGLY, call_plain, call_whole, cannot_call
from geomcallbacks.reading.device import device_of, send
from geomcallbacks.reading.evidence import Evidence, same, watch
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.positions import Positions, pick_positions, position_count, states_in
from geomcallbacks.reading.proof import Proven, named, prove, refusal
from geomcallbacks.reading.sharding import entry_of, spread_of

#: Calls a model on tokens: (model, input_ids (b, t), attention_mask (b, t)) -> anything; hooks read the states.
ForwardFn = Callable[[nn.Module, Tensor, Tensor], Any]

_TRIAL_TOKENS, _TRIAL_PADDING = 32, 4  # so few that logits are small whatever the vocabulary
_FLEX = (
    "flex attention runs without its compiled kernel while it is measured, so that no graph of training is compiled"
    " again: the states are right, but it is slower and keeps batch_size x heads x tokens x tokens scores. Lower"
    " batch_size where memory is short"
)


class _AllRead(BaseException):
    """Ends a forward pass from a hook, once every layer asked for is read. No ``except Exception`` may hold it."""


class Reader:
    """What is called, and where it is read. Nothing of a measurement is kept here: one reader serves a whole run.

    The only causal language model found inside `model` is called without its head; where its parameters are sharded,
    through the outermost sharded module and with logits of the last position alone. `layers=-1` is what enters the
    head. Other numbers are those of Transformers' `hidden_states`: 0 is what enters the first block, i what leaves
    block i, the last mostly what -1 is. A trial pass over one short row proves each, and finds it where it is not
    expected. A name takes the output of that submodule. Any other module is called whole (through `forward` where it
    does not take `input_ids`) and read at the submodules named by `layers`, or by `module` when `layers` is left at -1.

    Args:
        model: the model as the training loop holds it: wrapped by DDP, PEFT or torch.compile, or a LightningModule.
        layers: one layer or several.
        module: name of the submodule to read, where it cannot be found or where there are several.
        forward: how to call a model that does not take `input_ids`.

    Attributes:
        whole: the module in which whatever is called lies, and which is to be left without a trace.
        called: the module that is called.
        points: where it is read. Known after the trial pass, which `prove` runs, or else the first `read`.
        arithmetic: that of the training loop, where its wrapper shows it.
        at_once: layers that are read in one pass, fewer than all where their moments have not fitted; 0: all.
        remarks: what the user should know of what is read.
        spread: how the model is spread over processes.
        language_model: the language model that is read; None where it is another module.

    Raises:
        ValueError: several causal language models, an unknown layer or module, a model that cannot be read.
    """

    def __init__(
        self, model: nn.Module, layers: locate.Layers = -1, module: str | None = None, forward: ForwardFn | None = None
    ) -> None:
        self.spread = spread_of(model)
        whole, model = model, locate.unwrap(model)
        locate.refuse_unsupported(model)
        self._layers, asked = layers, locate.layer_list(layers)
        if not asked:
            raise ValueError("layers=[] reads nothing: give a layer, or -1 for the last")
        self._root_name, self._root = locate.find_root(model, module, by_name=True)
        in_language_model = locate.is_language_model(self._root)
        numbers = [layer for layer in asked if not isinstance(layer, str)]
        if not in_language_model and any(layer != -1 for layer in numbers):
            kind = type(self._root).__name__
            raise ValueError(f"layers={layers} counts blocks, which {kind} has not: name a submodule")
        self._named = [named(self._root, layer) for layer in asked if isinstance(layer, str)]
        if numbers and module is not None and not in_language_model:
            self._named, numbers = [Proven(locate.ReadPoint(module, module, self._root, "output", last=True))], []
        self._proves = bool(numbers)
        self._lost = self._proves and not in_language_model and forward is None
        self.whole = self.called = model
        self._forward: Callable[[nn.Module, Tensor, Any], Any] = forward or call_plain
        self._call_own = in_language_model and (forward is None or any(layer != -1 for layer in numbers))
        self.language_model = self._root if in_language_model and forward is None else None
        if self.language_model is not None:
            self.whole, self.called, self._forward = self._root, locate.backbone_of(self._root), _call_backbone
            if self.spread.sharded:
                self.whole = self.called = entry_of(model, self._root)
            if self.called is self.whole:
                self._forward = partial(call_whole, self._root)
        self.arithmetic = arithmetic_of(whole, device_of(self.called))
        self.points: list[locate.ReadPoint] = []
        self.remarks: list[str] = []
        self.at_once = 0
        self._stops_early = False

    def prove(self, batch: ProbeBatch, padded: bool = True) -> list[int]:
        """Find where each layer is read, by a trial pass over the first row of a batch, cut short.

        Args:
            batch: any batch of the probe.
            padded: rows differ in length, so that the model must give of a padded row what it gives of the row alone.

        Returns:
            d of each layer.

        Raises:
            ValueError: a layer is not there, or what it is cannot be proven. Whatever else fails in the model, such as
                memory, is raised as it is.
        """
        t = min(int(batch.lengths_b[0]), _TRIAL_TOKENS)
        length = t - min(t // 2, _TRIAL_PADDING)
        alone = _cut(batch, length, length)
        with torch.no_grad(), leave_no_trace(self.whole):
            seen = self._watch(alone) if self._proves else None
            found = self._named if seen is None else prove(self._root_name, self._root, self._layers, seen)
            points = [one.point for one in found]
            if self.language_model is not None and seen is not None:
                self._choose_call(points, seen)
            pick = lambda hidden_btd: hidden_btd[0, :length]
            states = self._run(alone, points, pick)
            if self.language_model is not None and self.called is not self.whole and not _shown(found, states):
                # Not to the bit: the model calls its backbone otherwise than with tokens alone.
                self.called, self._forward = self.whole, partial(call_whole, self._root)
                states = self._run(alone, points, pick)
            if self.language_model is not None and padded and t > length and _shown(found, states):
                others = self._run(_cut(batch, length, t), points, pick)
                if any(_moved(others[label], state_td) for label, state_td in states.items()):
                    kind = type(self._root).__name__
                    raise ValueError(f"{kind} gives other states of a row that is padded: give rows of one length")
        self.points, self.remarks = points, [one.remark for one in found if one.remark]
        if locate.has_flex_attention(self.whole):
            self.remarks.append(_FLEX)
        return [states[point.label].shape[-1] for point in points]

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
            ValueError: see `prove`; or a layer gave something other than a (b, t, d) tensor, or was not reached.
        """
        if not self.points:
            self.prove(batch)
        features = self._run(batch, self.points, pick_positions(batch, positions, device_of(self.called)))
        return features, batch.rows_b.repeat_interleave(position_count(batch.lengths_b, positions))

    def _run(
        self, batch: ProbeBatch, points: list[locate.ReadPoint], pick: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Run one batch, and return what `pick` makes of the states (b, t, d) at each of the points."""
        device = device_of(self.called)
        ids_bt = send(batch.input_ids_bt, device)
        # Without padding a mask says nothing, and attention without one may take a faster way.
        needed = batch.padded or self.language_model is None
        mask_bt = send(batch.mask_bt, device) if needed else None
        features: dict[str, Tensor] = {}

        def keep(point: locate.ReadPoint, value: Any) -> None:
            features[point.label] = pick(_hidden_states(point, value, batch))
            if self._stops_early and len(features) == len(points) and point.module is not self.called:
                raise _AllRead

        with ExitStack() as stack:
            for point in points:
                stack.callback(_hook(point, partial(keep, point)).remove)
            stack.enter_context(_as_written(self.called))
            with suppress(_AllRead):
                self._forward(self.called, ids_bt, mask_bt)
        missing = next((point.name for point in points if point.label not in features), None)
        if missing is not None:
            raise ValueError(f"layer {missing!r} was not reached by the forward pass: read another, or give forward=")
        return features

    def _watch(self, row: ProbeBatch) -> Evidence:
        """Run a row through all of the model, head included, and return what was seen."""
        device = device_of(self.called)
        ids_1t, mask_1t = send(row.input_ids_bt, device), send(row.mask_bt, device)
        head = locate.head_of(self._root) if locate.is_language_model(self._root) else None
        entry = self.whole if self.spread.sharded else self._root
        call: Callable[[], Any] = partial(self._forward, self.called, ids_1t, mask_1t)
        if self._call_own:
            call = partial(call_whole, self._root, entry, ids_1t, None, head=True, states=True)
        try:
            with _as_written(entry):
                seen = watch(self._root, call, ids_1t, head)
        except Exception as error:
            if self._lost:
                raise ValueError(refusal(self._root, None)) from error
            if isinstance(error, CALLED_WRONGLY):
                raise ValueError(cannot_call(self._root, error)) from error
            raise
        if self._lost:
            raise ValueError(refusal(self._root, seen))
        return seen

    def _choose_call(self, points: list[locate.ReadPoint], seen: Evidence) -> None:
        """Call no more than is read, and end the pass behind the last layer that is read, where that is known."""
        backbone, names = locate.backbone_of(self._root), {m: name for name, m in self._root.named_modules()}
        inside = set(backbone.modules())
        if any(point.module not in inside for point in points) or backbone is self._root:
            self.called, self._forward = self.whole, partial(call_whole, self._root, head=True)
        # A module that is named may run more than once in a pass, and the last time counts.
        # Accelerate's own hooks must see the end of a block whose weights they had brought in.
        offloads = any(hasattr(child, "_hf_hook") for child in self.called.modules())
        once = all(seen.runs[names[point.module]] == 1 for point in points)
        self._stops_early = once and not self._named and not self.spread.sharded and not offloads


def _cut(batch: ProbeBatch, length: int, width: int) -> ProbeBatch:
    """Return so many tokens of the first row of a batch, padded to a width."""
    ids_1t = batch.input_ids_bt[:1, :width] * (torch.arange(width, device="cpu") < length)
    return ProbeBatch(batch.rows_b[:1], ids_1t, torch.tensor([length], device="cpu"))


def _shown(found: list[Proven], states: dict[str, Tensor]) -> bool:
    """Whether each layer (t, d) is what the trial pass showed. A model that draws at random shows it once."""
    pairs = [(states[one.point.label][-1], one.state_d) for one in found if one.state_d is not None]
    return all(same(*pair) for pair in pairs)


def _moved(left_td: Tensor, right_td: Tensor) -> bool:
    """Whether most states differ by more than rounding in another order of sums.

    Most, since rounding now and then sends a single token to another expert.
    """
    exact = torch.finfo(right_td.dtype).eps < 1e-6 and torch.get_float32_matmul_precision() == "highest"
    tolerance = 1e-3 if exact and not torch.is_autocast_enabled(right_td.device.type) else 0.2
    left_td, right_td = left_td.float(), right_td.float()
    return bool(((left_td - right_td).norm(dim=1) > tolerance * right_td.norm(dim=1)).float().mean() > 0.5)


def _hidden_states(point: locate.ReadPoint, value: Any, batch: ProbeBatch) -> Tensor:
    """Return the hidden states (b, t, d) in what passes a hook, or raise ``ValueError`` where there are none."""
    hidden, expected = states_in(value), tuple(batch.input_ids_bt.shape)
    if hidden is None or hidden.ndim != 3 or tuple(hidden.shape[:2]) != expected:
        got = type(value).__name__ if hidden is None else tuple(hidden.shape)
        raise ValueError(f"layer {point.name!r} gives {got}, not states of shape {(*expected, 'd')}: read another")
    return hidden


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


@contextmanager
def _as_written(module: nn.Module) -> Iterator[None]:
    """Inside, the module's forward without the autocast of its own in which accelerate wraps a prepared model."""
    wrapped, own = vars(module).get("forward"), vars(module).get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    module.forward = own
    try:
        yield
    finally:
        module.forward = wrapped
