"""Geometry of a language model's hidden states, measured while it trains.

`GeometryMonitor` serves any training loop; `geomcallbacks.hf.GeometryCallback` and
`geomcallbacks.lightning.GeometryCallback` are one-line adapters, loaded on first use so that importing this package
imports no training framework.
"""

from __future__ import annotations

import importlib
from typing import Any

from geomcallbacks import metrics
from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.phases import Phase, PhaseTracker, find_phases
from geomcallbacks.probe import ProbeSet
from geomcallbacks.record import GeometryRecord, read_records, read_spectra
from geomcallbacks.schedule import Schedule

__version__ = "0.1.0"
__all__ = [
    "GeometryMonitor",
    "GeometryRecord",
    "Phase",
    "PhaseTracker",
    "ProbeSet",
    "Schedule",
    "find_phases",
    "metrics",
    "read_records",
    "read_spectra",
]

_LAZY = ("behaviour", "hf", "lightning", "report", "trace")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"geomcallbacks.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY])
