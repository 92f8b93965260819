"""Importing the package is cheap: no training framework comes with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import geomcallbacks

FRAMEWORKS = ("transformers", "trl", "lightning", "pytorch_lightning", "accelerate", "peft", "datasets", "wandb")


def modules_after(code: str) -> set[str]:
    report = "import json, sys; print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


MEASURE = """
import torch, geomcallbacks.report, tempfile
from geomcallbacks import GeometryMonitor, ProbeSet
model = torch.nn.Sequential(torch.nn.Embedding(9, 4))
probe = ProbeSet.from_token_ids(torch.randint(0, 9, (20, 5)))
path = tempfile.mkdtemp() + "/g.jsonl"
monitor = GeometryMonitor(probe, layers="0", alpha_window=(1, 3), path=path, on_error="raise")
assert monitor.measure(model, 0)[0].metrics["rankme"] > 1
"""


def test_measuring_imports_no_framework() -> None:
    loaded = modules_after(MEASURE)
    assert "geomcallbacks" in loaded
    assert not loaded & {*FRAMEWORKS, "matplotlib", "jinja2", "pandas"}


def test_public_names() -> None:
    assert {"GeometryMonitor", "GeometryRecord", "ProbeSet", "Schedule", "metrics", "read_records"} <= set(
        dir(geomcallbacks)
    )
    assert {"hf", "lightning"} <= set(dir(geomcallbacks))
    assert all(getattr(geomcallbacks, name) is not None for name in geomcallbacks.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = geomcallbacks.nothing
