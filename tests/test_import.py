"""Importing is cheap: no training framework comes along, and what needs one is loaded on first use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import geomcallbacks

HEAVY = {
    "transformers", "trl", "lightning", "pytorch_lightning", "accelerate", "peft", "datasets", "wandb", "torchmetrics",
    "matplotlib", "jinja2", "pandas", "scipy",
}  # fmt: skip
MEASURE = """
import torch, tempfile, geomcallbacks.report
from geomcallbacks import GeometryMonitor, ProbeSet
model = torch.nn.Sequential(torch.nn.Embedding(9, 4))
probe = ProbeSet.from_token_ids(torch.randint(0, 9, (20, 5)))
path = tempfile.mkdtemp() + "/g.jsonl"
monitor = GeometryMonitor(probe, layers="0", alpha_window=(1, 3), path=path, on_error="raise")
assert monitor.measure(model, 0)[0].metrics["rankme"] > 1
"""
COUNT = """
import torch
from geomcallbacks.behaviour import Completions, BehaviourMonitor, distinct_n, pass_at_k
assert pass_at_k(2, 1, 1) == distinct_n(["a a"], 1) == 0.5 and len(Completions([[1]], [[2]])) == 1
assert BehaviourMonitor({"x": lambda model: {"y": 1}}).step(torch.nn.Linear(1, 1), 0) == {"x/y": 1.0}
"""
LAZY = """
import sys, geomcallbacks
names = ("hf", "lightning", "report", "trace", "behaviour")
assert not {f"geomcallbacks.{name}" for name in names} & set(sys.modules) and {*names} <= {*dir(geomcallbacks)}
assert all(getattr(geomcallbacks, name) is sys.modules[f"geomcallbacks.{name}"] for name in names)
"""


def modules_after(code: str) -> set[str]:
    report = "import json, sys; print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", [MEASURE, COUNT], ids=["measuring", "counting"])
def test_no_framework_comes_along(code: str) -> None:
    assert not modules_after(code) & HEAVY


def test_what_needs_a_framework_is_loaded_on_first_use() -> None:
    assert modules_after(LAZY) >= {"transformers", "lightning"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = geomcallbacks.nothing


def test_public_names() -> None:
    assert all(getattr(geomcallbacks, name) is not None for name in geomcallbacks.__all__)
    assert {"GeometryMonitor", "GeometryRecord", "ProbeSet", "Schedule", "find_phases", "metrics", "read_records"} <= {
        *geomcallbacks.__all__
    }
