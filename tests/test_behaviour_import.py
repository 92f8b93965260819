"""Importing behaviour brings no training framework along."""

from __future__ import annotations

from test_import import FRAMEWORKS, modules_after


def test_importing_brings_no_framework() -> None:
    loaded = modules_after("import geomcallbacks.behaviour")
    assert "geomcallbacks" in loaded
    assert not loaded & {*FRAMEWORKS, "torchmetrics", "matplotlib", "pandas"}


def test_counting_needs_none_either() -> None:
    code = """
from geomcallbacks.behaviour import Completions, BehaviourMonitor, distinct_n, pass_at_k
import torch
assert pass_at_k(2, 1, 1) == distinct_n(["a a"], 1) == 0.5 and len(Completions([[1]], [[2]])) == 1
assert BehaviourMonitor({"x": lambda model: {"y": 1}}).step(torch.nn.Linear(1, 1), 0) == {"x/y": 1.0}
"""
    assert not modules_after(code) & {*FRAMEWORKS, "torchmetrics"}
