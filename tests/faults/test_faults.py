"""Faults injected into measurements of a training run: weights and loss rows are those of the undisturbed run, and the
record file can be read.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from drives import DRIVES, MEASURED, Ended, differences, read_by, steps, watcher
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from geomcallbacks import metrics, read_records
from geomcallbacks.adapters.tracker import TrackerQueue
from geomcallbacks.phases.rule import PhaseTracker
from geomcallbacks.running.record_writer import RecordWriter
from geomcallbacks.spectra.spectrum import spectrum_of_rows

pytestmark = pytest.mark.fault
Patch, Caught = pytest.MonkeyPatch, pytest.WarningsRecorder


def out_of_memory(tokens: int) -> Callable[[nn.Module, Tensor, Tensor], Any]:
    """More tokens at once do not fit."""

    def forward(backbone: nn.Module, ids: Tensor, mask: Tensor) -> Any:
        if ids.numel() > tokens:
            raise torch.OutOfMemoryError("injected")
        return backbone(ids, mask)

    return forward


def not_finite(backbone: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    """All but what is tried before training, which is one row."""
    spoil = lambda module, args: (args[0] * torch.nan,) if len(ids) > 1 else args
    with backbone.get_submodule("final_layer_norm").register_forward_pre_hook(spoil):
        return backbone(ids, mask)


#: Forward passes of the probe, and where an error is raised.
FAULTS: dict[str, Any] = {
    "out of memory": out_of_memory(16 * 20),
    "out of memory for one row": out_of_memory(10),
    "states that are not finite": not_finite,
    "exception in a metric": (metrics, "_entropy_rank", ZeroDivisionError("injected")),
    "exception in the solver": (torch.linalg, "eigvalsh", torch.linalg.LinAlgError("injected")),
    "exception in the phases": (PhaseTracker, "add", KeyError("injected")),
    "full disk": (RecordWriter, "write", OSError(28, "No space left on device")),
}
#: Of which faults there are records all the same: rows read at once, and whether RankMe has a value.
RECORDED = {
    "out of memory": (16, True),
    "states that are not finite": (32, False),
    "exception in the phases": (32, True),
}


@pytest.fixture(scope="module", params=["trainer", "lightning"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Ended]:
    return request.param, DRIVES[request.param](tmp_path_factory.mktemp("undisturbed"), [])


@pytest.mark.parametrize("kind", FAULTS)
def test_run_survives(
    undisturbed: tuple[str, Ended], kind: str, tmp_path: Path, monkeypatch: Patch, recwarn: Caught
) -> None:
    warnings.simplefilter("always")
    framework, wanted = undisturbed
    settings, fault = {"on_error": "warn"}, FAULTS[kind]
    if callable(fault):
        settings |= read_by(framework, fault)
    else:
        owner, name, error = fault
        monkeypatch.setattr(owner, name, Mock(side_effect=error))
    ended = DRIVES[framework](tmp_path, [watcher(framework, "geometry", tmp_path, **settings)])
    assert differences(wanted, ended) == []
    records = read_records(tmp_path / "geometry.jsonl")
    found = [(record["step"], record["batch_size"], record["rankme"] is not None) for record in records]
    assert found == ([(step, *RECORDED[kind]) for step in MEASURED] if kind in RECORDED else [])
    told = [str(warning.message) for warning in recwarn]
    ours = [text for text in told if any(word in text for word in ("not measured", "no value", "could not"))]
    assert len(ours) == (0 if kind == "out of memory" else 1), ours  # once, not three times


def test_run_survives_a_folder_that_cannot_be_written(undisturbed: tuple[str, Ended], tmp_path: Path) -> None:
    framework, wanted = undisturbed
    nowhere = Path("/proc/self/no/geometry.jsonl")  # a folder that nobody may make, root included
    watch = watcher(framework, "geometry", tmp_path, on_error="warn", path=nowhere)
    with pytest.warns(UserWarning, match=r"could not be written \(.*training goes on without"):
        ended = DRIVES[framework](tmp_path, [watch])
    assert differences(wanted, ended) == []


@pytest.mark.parametrize(("how", "told"), [("raises", "injected"), ("blocks", r"has not taken \d+ rows of geometry")])
def test_run_survives_a_broken_tracker(how: str, told: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """TensorBoard, which is given the loss as well: that is drawn, geometry is dropped, the record file has it."""
    write, released = SummaryWriter.add_scalar, threading.Event()

    def broken(self: SummaryWriter, key: str, *args: Any, **kwargs: Any) -> None:
        if key.startswith("geometry/"):
            if how == "raises":
                raise ConnectionError("injected")
            released.wait(60)
        write(self, key, *args, **kwargs)

    monkeypatch.setattr(SummaryWriter, "add_scalar", broken)
    monkeypatch.setattr(TrackerQueue.flush, "__defaults__", (0.2,))  # seconds for which the end of the run waits
    plain = DRIVES["trainer"](tmp_path / "plain", [], report_to="tensorboard")
    with pytest.warns(UserWarning, match=told):
        watched = DRIVES["trainer"](tmp_path, [watcher("trainer", "geometry", tmp_path)], report_to="tensorboard")
    released.set()
    assert differences(plain, watched) == []
    assert steps(tmp_path / "geometry.jsonl") == MEASURED


@pytest.mark.gpu
def test_solver_that_fails_on_the_device_is_tried_on_the_cpu(monkeypatch: Patch) -> None:
    rows_nd, solve = torch.randn(64, 6, device="cuda"), torch.linalg.eigvalsh
    wanted = spectrum_of_rows(rows_nd).eigenvalues

    def fails_there(matrix: Tensor) -> Tensor:
        if matrix.is_cuda:
            raise torch.linalg.LinAlgError("injected")
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails_there)
    torch.testing.assert_close(spectrum_of_rows(rows_nd).eigenvalues, wanted, rtol=1e-10, atol=0)
