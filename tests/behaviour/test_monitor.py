"""BehaviourMonitor by itself. What it promises a run stands in tests/adapters/test_contract.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import drives
import pytest
import tiny
import torch

from geomcallbacks import read_records
from geomcallbacks.behaviour import BehaviourMonitor, CompletionLoss


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    values = {"a": 1.0, "b": math.nan, "c": -math.inf, "d": None}
    monitor = BehaviourMonitor({"odd": lambda model: values}, path=tmp_path / "b.jsonl")
    found = monitor.step(torch.nn.Linear(2, 2), 0)
    monitor.close()
    assert found == {"odd/a": 1.0, "odd/b": None, "odd/c": None, "odd/d": None}
    assert json.loads((tmp_path / "b.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)["odd/b"] is None
    [record] = read_records(tmp_path / "b.jsonl")
    assert record.pop("seconds") >= 0
    assert record == {"step": 0, **found}


def test_measures_are_given_the_model_out_of_its_wrapper_and_stand_in_the_header(tmp_path: Path) -> None:
    seen, rows, model = [], drives.completions(), tiny.model()
    look = lambda model: {"x": seen.append(type(model)) or 1}
    monitor = BehaviourMonitor({"look": look, "own": CompletionLoss(rows)}, path=tmp_path / "b.jsonl")
    monitor.step(torch.nn.DataParallel(model), 0)
    monitor.close()
    assert seen == [type(model)]
    header = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert header["measures"]["own"] == {"kind": "CompletionLoss", "fingerprint": rows.fingerprint}
