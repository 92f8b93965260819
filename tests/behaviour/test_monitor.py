"""BehaviourMonitor by itself. What it promises a run stands in tests/adapters/test_contract.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import drives
import pytest
import tiny
import torch
from torch import nn

from geomcallbacks import read_records
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path, values = tmp_path / "b.jsonl", {"a": 1.0, "b": math.nan, "c": -math.inf, "d": None}
    monitor = BehaviourMonitor({"odd": lambda model: values}, path=path)
    found = {"odd/a": 1.0, "odd/b": None, "odd/c": None, "odd/d": None}
    assert monitor.step(nn.Linear(2, 2), 0) == found
    monitor.close()
    line = path.read_text().splitlines()[1]
    assert json.loads(line, parse_constant=pytest.fail)["odd/b"] is None
    [record] = read_records(path)
    assert record.pop("seconds") >= 0
    assert record == {"step": 0, **found}


def test_a_wrapped_model_is_unwrapped_for_the_measures() -> None:
    seen = []
    watch = BehaviourMonitor({"look": lambda model: {"x": seen.append(type(model)) or 1}})
    assert watch.step(torch.nn.DataParallel(torch.nn.Linear(2, 2)), 0) == {"look/x": 1.0}
    assert seen == [torch.nn.Linear]


def test_header_names_what_was_measured(tmp_path: Path) -> None:
    rows = drives.completions()
    monitor = BehaviourMonitor({"held_out": CompletionLoss(rows)}, path=tmp_path / "b.jsonl", total_steps=3)
    monitor.step(tiny.model(), 0)
    monitor.close()
    header = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert header["kind"] == "header"
    assert header["measures"] == {"held_out": {"kind": "CompletionLoss", "fingerprint": rows.fingerprint}}
    assert header["settings"]["total_steps"] == 3
