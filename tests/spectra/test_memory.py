"""Where memory runs out: what an error held is free before anyone waits, and what does not fit is read in turn.

No allocation of a CPU fails here, so that the errors are injected where a GPU would raise them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from torch import nn

from geomcallbacks import GeometryMonitor, measure
from geomcallbacks.behaviour import BehaviourMonitor, dealing
from geomcallbacks.spectra import summary
from geomcallbacks.spectra.moments import Moments

LAYERS = [0, 1, 2, -1]


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("injected: CUDA out of memory")


class Limited:
    """Room for so many second moments at once."""

    def __init__(self, most: int) -> None:
        self.most, self.alive, self.peak = most, weakref.WeakSet[Any](), 0

    @contextmanager
    def __call__(self) -> Iterator[Limited]:
        begin = Moments.__init__

        def init(store: Moments, *given: Any) -> None:
            if len(self.alive) >= self.most:
                out_of_memory()
            begin(store, *given)
            self.alive.add(store)
            self.peak = max(self.peak, len(self.alive))

        with mock.patch.object(Moments, "__init__", init):
            yield self


def monitor(**changes: Any) -> GeometryMonitor:
    # A precision that is named is known, whatever other tests have left of accelerate.
    settings = {
        "layers": LAYERS,
        "alpha_window": tiny.WINDOW,
        "on_error": "raise",
        "batch_size": 8,
        "precision": "fp32",
    }
    return GeometryMonitor(tiny.probe(), **settings | changes)


def passes(model: nn.Module) -> list[int]:
    """Rows of each pass through the model from now on."""
    seen: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    return seen


@pytest.mark.fault
@pytest.mark.parametrize("most", [1, 2, 3])
def test_layers_whose_moments_do_not_fit_together_are_read_in_turn(most: int) -> None:
    """The batch stays as it is, the numbers too, and the next measurement knows."""
    model = tiny.model("olmo2")
    wanted = monitor().measure(model, 0)
    watch = monitor()
    watch.start(model)
    with Limited(most)() as room:
        first = watch.measure(model, 0)
        seen = passes(model)
        second = watch.measure(model, 1)
    assert room.peak == most
    at_once = {1: 1, 2: 2, 3: 2}[most]
    for found in (first, second):
        assert [record.metrics for record in found] == [record.metrics for record in wanted]
        assert {record.batch_size for record in found} == {8}
        note = f"layers read in turn, {at_once} in a pass: their moments do not fit into memory together"
        assert {tuple(record.notes) for record in found} == {(note,)}
    assert seen == [8] * 8 * (len(LAYERS) // at_once)  # no attempt more than is needed


@pytest.mark.fault
def test_among_shards_the_pass_goes_on_where_moments_do_not_fit() -> None:
    """Others wait in each batch, and would wait for good; then all have fewer layers."""
    model = tiny.model("olmo2")
    wanted = monitor().measure(model, 0)
    watch = monitor()
    watch.start(model)
    assert watch._read_model is not None
    reader = watch._read_model[1]
    reader.spread = replace(reader.spread, sharded=True)
    seen = passes(model)
    with Limited(2)():
        found = watch.measure(model, 0)
    assert seen == [8] * 8 * 3
    assert [record.metrics for record in found] == [record.metrics for record in wanted]


@pytest.mark.fault
def test_moments_of_one_layer_that_do_not_fit_are_a_failure_and_no_smaller_batch() -> None:
    model = tiny.model("olmo2")
    watch = monitor(layers=-1)
    watch.start(model)
    seen = passes(model)
    with Limited(0)(), pytest.raises(torch.OutOfMemoryError, match="injected"):
        watch.measure(model, 0)
    assert seen == [8]


@pytest.mark.fault
def test_a_solve_that_does_not_fit_is_done_for_fewer_layers() -> None:
    model, solve, asked = tiny.model("olmo2"), summary.spectrum_of, [0]
    wanted = monitor().measure(model, 0)

    def limited(store: Any) -> Any:
        asked[0] += 1
        return out_of_memory() if asked[0] == 3 else solve(store)

    with mock.patch.object(summary, "spectrum_of", limited):
        found = monitor().measure(model, 0)
    assert [record.metrics for record in found] == [record.metrics for record in wanted]
    assert all("2 in a pass" in record.notes[-1] for record in found)


@pytest.mark.fault
def test_a_pass_that_does_not_fit_with_one_row_is_tried_with_fewer_layers() -> None:
    """Moments may have left too little for a single row; batches are then as before."""
    model = tiny.model("olmo2")
    watch = monitor()
    watch.start(model)
    read = measure.Reader.read

    def limited(reader: Any, *given: Any) -> Any:
        return out_of_memory() if len(reader.points) == 4 else read(reader, *given)

    with mock.patch.object(measure.Reader, "read", limited):
        found = watch.measure(model, 0)
    assert [record.batch_size for record in found] == [8] * 4


@pytest.mark.fault
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_what_an_error_holds_is_free_before_the_others_are_waited_for(kind: type[Exception]) -> None:
    """Also what stands behind it in a chain; its type, its text and where it was raised stay."""
    held: list[weakref.ref[Any]] = []

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fail = nn.Embedding(tiny.VOCABULARY, 8), False

        def forward(self, ids_bt: torch.Tensor) -> torch.Tensor:
            states = self.embed(ids_bt)
            if not self.fail:
                return states
            held.append(weakref.ref(states))
            try:
                deeper = states * 2
                held.append(weakref.ref(deeper))
                raise KeyError("first")
            except KeyError as error:
                raise kind("injected") from error

    def own(model: nn.Module) -> dict[str, float]:
        model(torch.ones(1, 3, dtype=torch.int64))
        return {}

    alive: list[int] = []
    worst, meet = measure.worst, dealing.meet

    def watching(call: Any) -> Any:
        return lambda *given: [alive.append(sum(ref() is not None for ref in held)), call(*given)][1]

    model = Fails()
    geometry = monitor(layers="embed", batch_size=1, alpha_window=(1, 4))
    geometry.start(model)
    behaviour = BehaviourMonitor({"own": own}, on_error="raise")
    behaviour.start(model)
    model.fail = True
    for watch, place, name in ((geometry, measure, "worst"), (behaviour, dealing, "meet")):
        held.clear()
        with (
            mock.patch.object(place, name, watching({"worst": worst, "meet": meet}[name])),
            pytest.raises(kind, match="injected") as caught,
        ):
            watch.measure(model, 0)
        assert caught.traceback[-1].name == "forward"
        assert isinstance(caught.value.__cause__, KeyError)
        assert len(held) == 2
    assert alive
    assert not any(alive)
