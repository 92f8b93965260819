"""What needs the model, checked before the first update: its vocabulary, its layers, n and d."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from geomcallbacks.measure import LostPassError, untouched
from geomcallbacks.probe import ProbeSet
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.locate import check_tokens
from geomcallbacks.reading.reader import Reader
from geomcallbacks.reading.rounding import dtype_name
from geomcallbacks.settings import ReadingSettings


def prepare(model: nn.Module, probes: Mapping[str, ProbeSet], settings: ReadingSettings) -> tuple[Reader, list[str]]:
    """Find what is read of the model, by a trial pass over one short row.

    Returns:
        What reads the model, and warnings, for n < 4d and for a default layer that is not the last of hidden_states.

    Raises:
        ValueError: the model's vocabulary, its layers or its d do not fit probe and settings.
    """
    reader = settings.reader(model)
    if settings.precision == "fp32" and reader.spread.dtype not in (None, torch.float32):
        raise ValueError(
            f"precision='fp32', and the policy of the sharded model computes in {dtype_name(reader.spread.dtype)}:"
            " give precision='training', or shard the model with another MixedPrecisionPolicy"
        )
    low = next((p.dtype for p in reader.called.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
    if settings.precision == "fp32" and low is not None:
        given = f"precision='fp32', and the model's weights are {dtype_name(low)}, in which they compute"
        raise ValueError(f"{given}: give precision='training', or a model in float32")
    language_model, warnings = reader.language_model, []
    for label, probe in probes.items() if language_model is not None else ():
        check_tokens(language_model, f"probe {label!r}", probe.max_token_id, probe.max_tokens)
    widths = _widths(reader, list(probes.values()), settings)
    for label, probe in probes.items():
        n = settings.features(probe)
        for d in widths:
            settings.check_probe(label, probe, d)
            if n < 4 * d:
                warnings.append(
                    f"probe {label!r} gives n = {n} features of d = {d}: below 4 d = {4 * d}, RankMe and its relatives"
                    " are biased downward, so compare only runs with the same n"
                )
    return reader, reader.remarks + warnings


def _widths(reader: Reader, probes: list[ProbeSet], settings: ReadingSettings) -> list[int]:
    """Return d of each layer, from a trial pass that finds where each is read."""
    row = probes[0].batch(probes[0].lengths_n.argmin(0, keepdim=True))
    padded = any(bool((probe.lengths_n != probe.lengths_n[0]).any()) for probe in probes)
    try:
        with untouched(reader, settings, device_of(reader.called)):
            return reader.prove(row, padded)
    except ValueError:  # a refusal
        raise
    except Exception as error:
        if reader.spread.sharded:
            raise LostPassError(error, settings.batch_size) from error
        raise
