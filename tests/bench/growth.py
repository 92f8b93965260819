"""How the cost of a measurement grows with each of its sizes, the others held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from bench.table import Section
from bench.timing import exponent
from geomcallbacks import ProbeSet
from geomcallbacks.measure import measure_probe
from geomcallbacks.settings import Settings

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
    """From which each size is varied."""
    return Point(n=8192, d=1024, layers=8, tokens=256) if cuda else Point(n=1024, d=128, layers=4, tokens=64)


def growth(device: torch.device, start: Point, rounds: int = 3) -> Section:
    """Seconds of measurements along each size, and the exponent of its power law."""
    section = Section(
        "How the cost grows",
        f"GPT-NeoX blocks in float32, each size alone from n = {start.n:,} rows of {start.tokens} tokens,"
        f" d = {start.d}, {start.layers} layers, one position a row; medians of {rounds} rounds in turn. The exponent"
        " is that of a power law through all values: 1 is proportional. positions=k at equal n reads n / k rows.",
    )
    factors = (0.5, 1, 2)
    axes = {name: [int(getattr(start, name) * f) for f in factors] for name in ("n", "d", "layers", "tokens")}
    points = {name: [replace(start, **{name: value}) for value in values] for name, values in axes.items()}
    points["positions=k, equal rows"] = [replace(start, positions=k) for k in POSITIONS]
    points["positions=k, equal n"] = [replace(start, n=start.n // k, positions=k) for k in POSITIONS]
    for name, along in points.items():
        found = [timed(point, device) for point in along * rounds]
        values = POSITIONS if name.startswith("positions") else axes[name]
        forward, spectrum = (
            [median(t[part] for t in found[i :: len(along)]) for i in range(len(along))] for part in (0, 1)
        )
        section.rows.append(
            {
                "size": name,
                "values": ", ".join(f"{value:,}" for value in values),
                "forward (s)": series(forward),
                "exponent": exponent(values, forward),
                "spectrum (s)": series(spectrum),
                "exponent of spectrum": exponent(values, spectrum),
            }
        )
    return section


def timed(point: Point, device: torch.device) -> tuple[float, float]:
    """Seconds of the forward pass and of the spectrum of one measurement, the first of its kind left out."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=point.d,
        num_hidden_layers=point.layers,
        num_attention_heads=4,
        intermediate_size=4 * point.d,
    )
    model = AutoModelForCausalLM.from_config(config).to(device)
    settings = Settings(positions=point.positions, alpha_window=(2, 8))
    short, probe = (ProbeSet.from_token_ids(torch.randint(0, VOCABULARY, (n, point.tokens))) for n in (32, point.n))
    measure_probe(model, "warm-up", short, settings, step=0)
    record: Any = measure_probe(model, "probe", probe, settings, step=0)[0]
    return record.seconds_forward, record.seconds_spectrum


def series(seconds: list[float]) -> str:
    """Times in one cell."""
    return ", ".join(f"{each:.3g}" for each in seconds)
