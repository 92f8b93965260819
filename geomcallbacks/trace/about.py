"""What the header of a traced file says: how the numbers below it came about."""

from __future__ import annotations

import platform
from typing import Any

import torch

from geomcallbacks.behaviour.monitor import measures_header
from geomcallbacks.trace.measuring import CheckpointMeasure


def about_geometry(measure: CheckpointMeasure, curve: dict[str, Any]) -> dict[str, Any]:
    """Of the record file.

    Args:
        measure: what is measured, and how.
        curve: `models` and `dtype`.
    """
    said = {
        "settings": measure.settings.header(),
        "probes": {k: {"fingerprint": p.fingerprint, "rows": len(p)} for k, p in measure.probes.items()},
    }
    said["settings"]["recorded_precision"] = measure.precision
    # Models in order are trained from one another: only the first can have been random.
    told = False if len(curve["models"]) > 1 else measure.recorded and measure.recorded.from_scratch
    if told is not None:
        said["settings"]["from_scratch"] = told
    return {"trace": curve, **said, "versions": _versions()}


def about_behaviour(measure: CheckpointMeasure, curve: dict[str, Any]) -> dict[str, Any]:
    """Of the file of the measures' numbers."""
    return {"trace": curve, **measures_header(measure.measures), "versions": _versions()}


def _versions() -> dict[str, str]:
    import transformers

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }
