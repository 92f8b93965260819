"""Faults injected into measurements of a training run: status, weights and loss rows are those of the undisturbed run,
and the record file can be read.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_hf
import test_lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.tensorboard import SummaryWriter

from geomcallbacks import GeometryMonitor, metrics, read_records
from geomcallbacks.reading.reader import Reader
from geomcallbacks.spectra import spectrum
from geomcallbacks.spectra.spectrum import spectrum_of_rows

Patch = pytest.MonkeyPatch
NOWHERE = Path("/proc/self/no/geometry.jsonl")  # a folder that nobody may make, root included


def out_of_memory(patch: Patch, always: bool = False) -> None:
    """More than 16 rows at once do not fit; or no row does."""
    read = Reader.read

    def fails(self: Reader, batch: Any, positions: Any) -> Any:
        if len(batch.rows_b) > (0 if always else 16):
            raise torch.OutOfMemoryError("injected")
        return read(self, batch, positions)

    patch.setattr(Reader, "read", fails)


def not_finite(patch: Patch) -> None:
    read = Reader.read

    def spoilt(self: Reader, batch: Any, positions: Any) -> Any:
        features, origin = read(self, batch, positions)
        for feature_md in features.values():
            feature_md[0, 0] = torch.nan
        return features, origin

    patch.setattr(Reader, "read", spoilt)


def raising(patch: Patch, where: Any, name: str, error: Exception) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    patch.setattr(where, name, fails)


def full_disk(patch: Patch) -> None:
    """Nothing more can be written once the run has begun."""
    start = GeometryMonitor.start

    def started(self: GeometryMonitor, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self._writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        raising(patch, type(self._writer), "write_spectra", OSError(28, "No space left on device"))

    patch.setattr(GeometryMonitor, "start", started)


#: Each fault, and what the record file says of the measurements then: steps of which there is a record, what is in it.
FAULTS: dict[str, tuple[Callable[[Patch], None], Callable[[list[dict[str, Any]]], bool]]] = {
    "out of memory": (
        out_of_memory,
        lambda rows: len(rows) == 4 and rows[0]["batch_size"] == 16 and "halved" in rows[0]["notes"][0],
    ),
    "out of memory for one row": (lambda patch: out_of_memory(patch, always=True), lambda rows: rows == []),
    "states that are not finite": (
        not_finite,
        lambda rows: (
            len(rows) == 4 and all(r["rankme"] is None and "not finite" in r["reasons"]["rankme"] for r in rows)
        ),
    ),
    "exception in a metric": (
        lambda patch: raising(patch, metrics, "rankme", ZeroDivisionError("injected")),
        lambda rows: rows == [],
    ),
    "exception in the solver": (
        lambda patch: raising(patch, torch.linalg, "eigvalsh", torch.linalg.LinAlgError("injected")),
        lambda rows: rows == [],
    ),
    "exception in the phases": (
        lambda patch: raising(patch, GeometryMonitor, "_follow", KeyError("injected")),
        lambda rows: [r["step"] for r in rows] == [0, 2, 4, 6],
    ),
    "full disk": (full_disk, lambda rows: rows == []),
}


@contextmanager
def injected(name: str) -> Iterator[None]:
    """The fault, from the first update on: what is wrong before training is the user's to mend, and is refused."""
    with pytest.MonkeyPatch.context() as patch:
        check = GeometryMonitor._check

        def checked(self: GeometryMonitor, model: Any) -> None:
            check(self, model)
            FAULTS[name][0](patch)

        if name == "full disk":
            FAULTS[name][0](patch)
        else:
            patch.setattr(GeometryMonitor, "_check", checked)
        yield


def trained_by_trainer(folder: Path, callbacks: list[Any], **changes: Any) -> Any:
    """Weights and logged rows."""
    weights, _, rows = test_hf.outcome(test_hf.trainer(folder, callbacks, **changes))
    return weights, json.dumps(rows)


def trained_by_lightning(folder: Path, callbacks: list[Any], **changes: Any) -> Any:
    _, module = test_lightning.fit(folder, callbacks, logger=CSVLogger(folder), **changes)
    return module.state_dict(), test_lightning.loss_rows(folder)


FRAMEWORKS = {
    "trainer": (trained_by_trainer, test_hf.callback),
    "lightning": (trained_by_lightning, test_lightning.callback),
}


@pytest.fixture(scope="module", params=list(FRAMEWORKS))
def framework(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """How to train, a callback, and what the undisturbed run without one ends with."""
    train, callback = FRAMEWORKS[request.param]
    return train, callback, train(tmp_path_factory.mktemp("undisturbed"), [])


def same(got: Any, wanted: Any) -> bool:
    return got[1] == wanted[1] and all(torch.equal(value, wanted[0][name]) for name, value in got[0].items())


@pytest.mark.fault
@pytest.mark.parametrize("name", list(FAULTS))
def test_run_survives(framework: Any, name: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    train, callback, undisturbed = framework
    path = tmp_path / "geometry.jsonl"
    with warnings.catch_warnings(record=True) as caught, injected(name):
        warnings.simplefilter("always")
        got = train(tmp_path, [callback(on_error="warn", path=path)])
    assert same(got, undisturbed)
    assert FAULTS[name][1](read_records(path))
    said = [str(w.message) for w in caught if "injected" in str(w.message) or "geometry" in str(w.message)]
    ours = [text for text in said if any(word in text for word in ("not measured", "no value", "could not"))]
    assert len(ours) == (0 if name == "out of memory" else 1), ours  # once, not four times
    tally(name, injected=4, survived=4)


@pytest.mark.fault
def test_run_survives_a_folder_that_cannot_be_written(
    framework: Any, tmp_path: Path, tally: Callable[..., None]
) -> None:
    train, callback, undisturbed = framework
    with pytest.warns(UserWarning, match=r"could not be written \(.*training goes on without"):
        got = train(tmp_path, [callback(on_error="warn", path=NOWHERE)])
    assert same(got, undisturbed)
    tally("folder that cannot be written")


@pytest.mark.fault
@pytest.mark.parametrize("how", ["raises", "blocks"])
def test_run_survives_a_broken_tracker(
    how: str, tmp_path: Path, monkeypatch: Patch, tally: Callable[..., None]
) -> None:
    """TensorBoard, which writes the loss as well: that goes through, geometry is dropped."""
    undisturbed = trained_by_trainer(tmp_path / "plain", [])
    write, released = SummaryWriter.add_scalar, threading.Event()

    def broken(self: SummaryWriter, key: str, *args: Any, **kwargs: Any) -> None:
        if key.startswith("geometry/"):
            if how == "raises":
                raise ConnectionError("injected")
            released.wait(60)
        write(self, key, *args, **kwargs)

    monkeypatch.setattr(SummaryWriter, "add_scalar", broken)
    with pytest.warns(UserWarning, match=r"injected" if how == "raises" else r"has not taken \d+ rows of geometry"):
        got = trained_by_trainer(tmp_path / "watched", [test_hf.callback(on_error="raise")], report_to="tensorboard")
    released.set()
    assert same(got, undisturbed)
    records = read_records(tmp_path / "watched" / "geometry.jsonl")
    assert [r["step"] for r in records] == [0, 2, 4, 6]  # the file's rows are never dropped
    tally(f"tracker that {how}", injected=4, survived=4)


@pytest.mark.fault
def test_solver_that_fails_on_the_device_is_tried_on_the_cpu(monkeypatch: Patch, tally: Callable[..., None]) -> None:
    """Without a device here, a tensor that claims to lie on one."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self) -> torch.device:
            return torch.device("cuda")

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    class Back(torch.Tensor):
        def to(self, device: torch.device) -> torch.Tensor:
            assert device == torch.device("cuda")
            return self.as_subclass(torch.Tensor)

    solve, tried = torch.linalg.eigvalsh, []

    def fails_there(matrix: torch.Tensor) -> torch.Tensor:
        tried.append(type(matrix))
        if isinstance(matrix, Elsewhere):
            raise torch.linalg.LinAlgError("injected")
        return solve(matrix).as_subclass(Back)

    rows_nd = torch.randn(20, 6, dtype=torch.float64)
    gram_dd = rows_nd.T @ rows_nd
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails_there)
    got = spectrum._descending_eigenvalues(gram_dd.as_subclass(Elsewhere))
    assert tried == [Elsewhere, torch.Tensor]
    monkeypatch.undo()
    torch.testing.assert_close(got, torch.linalg.svdvals(rows_nd).square(), rtol=1e-10, atol=1e-10)
    assert spectrum_of_rows(rows_nd).eigenvalues.shape == (6,)
    tally("solver that fails on the device")
