"""Seeded combinations of faults, on real trainers: whether a run is changed, or a measurement is lost without a line of
its reason, a row in the framework's log, and a word. test_combinations runs a thousand.
"""

from __future__ import annotations

import io
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import drives
import pytest
import torch
from drives import DRIVES, MEASURED, SUBJECTS, Ended, differences
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import integration_utils

from geomcallbacks.adapters.tracker import TrackerQueue
from geomcallbacks.phases.rule import PhaseTracker
from geomcallbacks.reading.reader import Reader
from geomcallbacks.record import read_lines
from geomcallbacks.running import record_writer

Patch = pytest.MonkeyPatch
FRAMEWORKS = ("trainer", "lightning")


class Notebook(TrainerCallback):
    """A tracker that Transformers is told of."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None: ...


def often(rng: random.Random, share: float, then: Callable[[], Any]) -> Callable[..., Any]:
    """A function that calls `then`, which raises or gives another result, in a share of its calls."""
    return lambda function: lambda *args, **kwargs: then() if rng.random() < share else function(*args, **kwargs)


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def reads(patch: Patch, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    patch.setattr(Reader, "read", change(Reader.read))


def out_of_memory(rng: random.Random, patch: Patch) -> None:
    """For more rows than a limit, which may be none; the trial pass has one row."""
    limit, share = rng.choice([0, 1, 8, 16]), rng.choice([0.3, 1.0])

    def change(read: Callable[..., Any]) -> Callable[..., Any]:
        def limited(self: Reader, batch: Any, positions: Any) -> Any:
            if len(batch.lengths_b) > limit and rng.random() < share:
                raise torch.OutOfMemoryError("injected")
            return read(self, batch, positions)

        return limited

    reads(patch, change)


def not_finite(rng: random.Random, patch: Patch) -> None:
    def change(read: Callable[..., Any]) -> Callable[..., Any]:
        def spoilt(self: Reader, batch: Any, positions: Any) -> Any:
            features, origin = read(self, batch, positions)
            bad = rng.random() < 0.3
            return ({name: rows * torch.nan for name, rows in features.items()} if bad else features), origin

        return spoilt

    reads(patch, change)


def kernel(rng: random.Random, patch: Patch) -> None:
    reads(patch, often(rng, rng.choice([0.2, 1.0]), raising(RuntimeError("no kernel image: injected"))))


def solver(rng: random.Random, patch: Patch) -> None:
    failing = often(rng, 0.4, raising(torch.linalg.LinAlgError("injected")))
    patch.setattr(torch.linalg, "eigvalsh", failing(torch.linalg.eigvalsh))


def phases(rng: random.Random, patch: Patch) -> None:
    patch.setattr(PhaseTracker, "add", often(rng, 0.5, raising(KeyError("injected")))(PhaseTracker.add))


def full_disk(rng: random.Random, patch: Patch) -> None:
    """For some of the writes, but never to the end of the run."""
    left = iter(range(rng.randint(1, 4)))
    full = lambda: next(left, None) is not None and rng.random() < 0.8
    write, keep = record_writer._append, record_writer.replace_file

    def append(file: Any, data: bytes) -> None:
        if full():
            raise OSError(28, "No space left on device: injected")
        write(file, data)

    def replace(target: Path, data: bytes) -> None:
        if full():
            raise OSError(28, "No space left on device: injected")
        keep(target, data)

    patch.setattr(record_writer, "_append", append)
    patch.setattr(record_writer, "replace_file", replace)


def tracker_raises(rng: random.Random, patch: Patch) -> None:
    add, fail = SummaryWriter.add_scalar, raising(ConnectionError("injected"))
    ours = lambda key: str(key).startswith(SUBJECTS) and rng.random() < 0.7
    tell = lambda self, key, *args, **kwargs: fail() if ours(key) else add(self, key, *args, **kwargs)
    patch.setattr(SummaryWriter, "add_scalar", tell)
    hook = lambda *args, logs=None, **kwargs: fail() if any(map(ours, logs)) else None
    patch.setattr(Notebook, "on_log", hook)


def tracker_blocks(rng: random.Random, patch: Patch, stack: ExitStack) -> None:
    add, released = SummaryWriter.add_scalar, threading.Event()

    def blocked(self: SummaryWriter, key: str, *args: Any, **kwargs: Any) -> None:
        if str(key).startswith(SUBJECTS):
            released.wait(30)
        add(self, key, *args, **kwargs)

    patch.setattr(SummaryWriter, "add_scalar", blocked)
    patch.setattr(TrackerQueue.flush, "__defaults__", (0.02,))
    stack.callback(released.set)


def warnings_as(action: str) -> Callable[[random.Random, Patch], None]:
    """Of our own modules: the frameworks' own warnings would end the run without us."""
    return lambda rng, patch: warnings.filterwarnings(action, module="geomcallbacks")


class Broken(io.TextIOBase):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError("injected")


def stdout(rng: random.Random, patch: Patch) -> None:
    closed = io.StringIO()
    closed.close()
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    patch.setattr(sys, "stdout", rng.choice([Broken(), closed, ascii_only, None]))


def handler(rng: random.Random, patch: Patch) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise BrokenPipeError("injected")

    patch.setattr(logging.getLogger("geomcallbacks"), "handlers", [Raises()])
    patch.setattr(logging.getLogger("geomcallbacks"), "level", logging.INFO)


def measure(rng: random.Random, patch: Patch) -> None:
    fail = often(rng, 0.5, raising(ZeroDivisionError("injected")))
    patch.setattr(drives, "careless", fail(drives.careless))


FAULTS: dict[str, Callable[..., None]] = {
    "out of memory": out_of_memory,
    "states that are not finite": not_finite,
    "kernel": kernel,
    "solver": solver,
    "phases": phases,
    "full disk": full_disk,
    "tracker raises": tracker_raises,
    "tracker blocks": tracker_blocks,
    "warnings as errors": warnings_as("error"),
    "warnings ignored": warnings_as("ignore"),
    "stdout": stdout,
    "handler": handler,
    "measure": measure,
}
#: Those that lose a number, a row or a line, so that something must be told.
SILENT = {"warnings as errors", "warnings ignored", "stdout", "handler"}


def careless_alone() -> dict[str, Any]:
    """Measures of behaviour that take no time."""
    return {"careless": lambda model: drives.careless(model)}


@contextmanager
def injected(names: list[str], rng: random.Random) -> Iterator[None]:
    with ExitStack() as stack, warnings.catch_warnings():
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in names:
            extra = (stack,) if name == "tracker blocks" else ()
            FAULTS[name](rng, patch, *extra)
        yield


def run(framework: str, folder: Path, watched: bool) -> Ended:
    """Train, with geometry and behaviour watched or without."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"geometry": {}, "behaviour": {"measures": careless_alone()}}
    both = [drives.watcher(framework, name, folder, on_error="warn", **own[name]) for name in own] if watched else []
    if framework != "trainer":
        return DRIVES[framework](folder, both)
    made = drives.make_trainer(folder, [*both, Notebook()], report_to="tensorboard")
    made.remove_callback(PrinterCallback)  # it prints the loss, and fails by itself where nothing can be printed
    return drives.trained(made)


def check(
    seed: int,
    undisturbed: dict[str, Ended],
    folder: Path,
    names: Sequence[str] = FRAMEWORKS,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Draw a combination, train under it, and raise ``AssertionError`` where something is changed or lost.

    Args:
        seed: of the combination.
        undisturbed: how runs end without us, by framework.
        folder: of the run.
        names: frameworks to choose from.
        rank: of this process.
        world: processes, of which one has the faults.
    """
    rng = random.Random(seed)
    framework, victim = rng.choice(list(names)), rng.randrange(world)
    faults = rng.sample(sorted(FAULTS), rng.randint(1, 4))
    case = f"seed {seed}: {framework}, on process {victim} {', '.join(faults)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)
        told: list[str] = []
        patch.setattr(warnings, "showwarning", lambda message, *rest, **more: told.append(str(message)))
        with injected(faults if rank == victim else [], rng):
            ended = run(framework, folder, watched=True)
    assert differences(undisturbed[framework], ended) == [], case
    if rank > 0:  # the first writes
        return
    failures = 0
    for subject in SUBJECTS:
        lines = read_lines(folder / f"{subject}.jsonl")
        assert lines[0]["kind"] == "header", case
        for step in MEASURED:
            here = [line for line in lines if line.get("step") == step]
            skips = [line for line in here if line["kind"] == "skip" and line["part"] != "trial"]
            records = [line for line in here if line["kind"] == "record"]
            assert len(skips) + len(records) == 1, (case, subject, step, here)
            empty = [record for record in records if record.get("rankme", 0.0) is None]
            assert all(line["reason"] for line in skips), case
            assert all(record["reasons"]["rankme"] for record in empty), case
            failures += len(skips) + len(empty)
            rows = [row for row in ended.ours if row["step"] == step and f"{subject}/" in "".join(row)]
            assert len(rows) == 1, (case, subject, step, ended.ours)
    ours = [text for text in told if "geomcallbacks" not in text and any(w in text for w in ("measured", "no value"))]
    assert bool(ours) == bool(failures), (case, told)
    assert len(ours) == len(set(ours)), (case, told)
