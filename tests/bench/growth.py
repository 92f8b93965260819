"""How the cost of a measurement grows with each of its sizes, the others held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from bench.section import Section
from bench.timing import exponent
from geomcallbacks import GeometryMonitor, GeometryRecord, ProbeSet

VOCABULARY = 512
POSITIONS = [1, 2, 4, 8, 16]


@dataclass(frozen=True)
class Point:
    """A measurement: n rows of so many tokens, and a model of width d and so many layers."""

    n: int
    d: int
    layers: int
    tokens: int
    positions: int = 1


def base(cuda: bool) -> Point:
    """Return the point from which each size is varied."""
    return Point(n=8192, d=1024, layers=8, tokens=256) if cuda else Point(n=1024, d=128, layers=4, tokens=64)


def growth(device: torch.device, start: Point, rounds: int = 3) -> Section:
    """Time measurements along each size, with the exponent of its power law."""
    axes = {name: [int(getattr(start, name) * f) for f in (0.5, 1, 2)] for name in ("n", "d", "layers", "tokens")}
    points = {name: [replace(start, **{name: value}) for value in values] for name, values in axes.items()}
    points["positions=k, equal rows"] = [replace(start, positions=k) for k in POSITIONS]
    points["positions=k, equal n"] = [replace(start, n=start.n // k, positions=k) for k in POSITIONS]
    rows = []
    for name, along in points.items():
        found = [measured(point, device) for point in along * rounds]
        turns = [found[index :: len(along)] for index in range(len(along))]
        values = axes.get(name, POSITIONS)
        forward = [median(record.seconds_forward for record in records) for records in turns]
        spectrum = [median(record.seconds_spectrum for record in records) for records in turns]
        rows.append(
            {
                "size": name,
                "values": ", ".join(f"{value:,}" for value in values),
                "forward (s)": ", ".join(f"{each:.3g}" for each in forward),
                "exponent": exponent(values, forward),
                "spectrum (s)": ", ".join(f"{each:.3g}" for each in spectrum),
                "exponent of spectrum": exponent(values, spectrum),
            }
        )
    return Section(
        "How the cost grows",
        f"GPT-NeoX blocks in float32, each size alone from n = {start.n:,} rows of {start.tokens} tokens,"
        f" d = {start.d}, {start.layers} layers, one position a row; medians of {rounds} rounds in turn. The exponent"
        " is that of a power law through all values: 1 is proportional. positions=k at equal n reads n / k rows.",
        rows,
    )


def measured(point: Point, device: torch.device) -> GeometryRecord:
    """Return one measurement, the first of its kind left out."""
    torch.manual_seed(0)
    d, layers = point.d, point.layers
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=d, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=4 * d
    )
    model = AutoModelForCausalLM.from_config(config).to(device)
    for n in (32, point.n):
        probe = ProbeSet.from_token_ids(torch.randint(0, VOCABULARY, (n, point.tokens)))
        monitor = GeometryMonitor(probe, positions=point.positions, alpha_window=(2, 8), on_error="raise")
        records = monitor.measure(model, 0)
    return records[0]
