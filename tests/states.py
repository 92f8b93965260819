"""Hidden states as the reader gives them, and as the model itself does."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from geomcallbacks import ProbeSet
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader
from geomcallbacks.spectra.moments import Rows


def read(
    model: nn.Module, probe: ProbeSet, layers: object = -1, positions: object = "last", batch_size: int = 16, **where
) -> dict[str, Tensor]:
    """Features (n, d) by layer, in the order of the probe's rows."""
    return read_by(proven(model, probe, layers, **where), probe, positions, batch_size)


def proven(model: nn.Module, probe: ProbeSet, layers: object = -1, **where) -> Reader:
    """A reader that has run its trial pass."""
    reader = Reader(model, layers, **where)
    reader.prove(probe.batches(1)[0])
    return reader


def read_by(reader: Reader, probe: ProbeSet, positions: object = "last", batch_size: int = 16) -> dict[str, Tensor]:
    """Features (n, d) by layer, in the order of the probe's rows."""
    stores: dict[str, Rows] = {}
    with leave_no_trace(reader.whole):
        for batch in probe.batches(batch_size):
            features, origin = reader.read(batch, positions)
            for label, feature_md in features.items():
                assert not feature_md.requires_grad
                stores.setdefault(label, Rows(feature_md.shape[1])).update(feature_md, origin)
    return {label: store.finish()[0] for label, store in stores.items()}


def own_states(model: nn.Module, ids_nt: Tensor, mask_nt: Tensor) -> list[list[Tensor]]:
    """By the model's own account: for each layer 0…L the states (length, d) of each row's real tokens."""
    model = copy.deepcopy(model).eval()
    position_nt = (mask_nt.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(ids_nt, attention_mask=mask_nt, position_ids=position_nt, output_hidden_states=True)
    return [
        [row.double()[real] for row, real in zip(layer, mask_nt.bool(), strict=True)] for layer in out.hidden_states
    ]


def last_states(states: list[Tensor]) -> Tensor:
    """(n, d) of the last real tokens."""
    return torch.stack([row[-1] for row in states])


def hooks_of(model: nn.Module) -> int:
    """How many hooks lie on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
