"""What trackers are given: the keys of a row, and what is left out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from geomcallbacks import GeometryMonitor
from geomcallbacks.adapters.tracker import geometry_row, wandb_histograms
from geomcallbacks.behaviour import BehaviourMonitor
from geomcallbacks.behaviour.monitor import behaviour_row
from geomcallbacks.metrics import METRIC_NAMES


def monitor(probe: Any, **settings: Any) -> GeometryMonitor:
    return GeometryMonitor(probe, alpha_window=tiny.WINDOW, **settings)


def test_the_last_layer_of_one_probe_has_short_keys() -> None:
    watch = monitor(tiny.probe(), layers=[3])
    (record,) = watch.measure(tiny.model(), 0)
    row = geometry_row(watch, [record])
    assert row.values == {f"geometry/{name}": value for name, value in record.metrics.items()}
    assert (list(row.missing), list(row.shown), row.sentences) == (["geometry/phase"], ["geometry/rankme"], [])
    assert row.printed == [{f"geometry/{name}": record.metrics[name] for name in ("rankme", "alpha_req", "top1_share")}]
    assert torch.equal(row.spectra["geometry/log10_eigenvalues"], record.eigenvalues)


def test_a_second_layer_or_probe_adds_keys_and_renames_none() -> None:
    model, probe = tiny.model(), tiny.probe()
    wanted = {
        "geometry": monitor(probe),
        "geometry geometry/layer0": monitor(probe, layers=[0, -1]),
        "geometry/a": monitor({"a": probe}),
        "geometry/a geometry/a/layer1 geometry/b geometry/b/layer1": monitor({"a": probe, "b": probe}, layers=[1, 3]),
        "geometry geometry/gpt_neox.layers.0": monitor(probe, layers=["gpt_neox.layers.0", -1]),
    }
    for keys, watch in wanted.items():
        row = geometry_row(watch, watch.measure(model, 0))
        assert set(row.values) == {f"{key}/{name}" for key in keys.split() for name in METRIC_NAMES}
        assert sorted(watch.prefixes) == keys.split()


def test_what_has_no_value_is_missing_and_a_phase_is_a_number() -> None:
    watch, model = monitor(tiny.probe(), from_scratch=True), tiny.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.0)
    row = geometry_row(watch, watch.measure(model, 0))
    assert (row.values, row.spectra, row.printed) == ({"geometry/failed": 1.0}, {}, [])
    assert set(row.missing) == {f"geometry/{name}" for name in (*METRIC_NAMES, "phase")}
    records = watch.measure(tiny.model(), 1)
    named = [type(record)(**{**vars(record), "phase": "compression-seeking", "news": "it began"}) for record in records]
    row = geometry_row(watch, named)
    assert (row.values["geometry/phase"], row.sentences) == (2, ["geometry: it began"])


def test_behaviour_has_a_line_for_each_measure() -> None:
    watch = BehaviourMonitor({"a": lambda model: {"x": 1.0, "y": float("nan")}, "b": lambda model: {"x": 2}})
    row = behaviour_row(watch, watch.measure(tiny.model(), 0))
    assert row.values == {"behaviour/a/x": 1.0, "behaviour/b/x": 2.0}
    assert row.missing == ["behaviour/a/y"]
    assert row.printed == [{"behaviour/a/x": 1.0}, {"behaviour/b/x": 2.0}]


def test_histograms_leave_round_off_out() -> None:
    pytest.importorskip("wandb")
    eigenvalues = torch.tensor([100.0, 10.0, 1.0, 1e-16, 0.0], dtype=torch.float64)
    (drawn,) = wandb_histograms({"k": eigenvalues}).values()
    assert sum(drawn.histogram) == 3
    assert np.allclose([drawn.bins[0], drawn.bins[-1]], [0.0, 2.0])
