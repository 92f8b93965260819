"""What a tracker is given: rows with their keys, and a queue that none of them can block."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from geomcallbacks.metrics import numerical_rank
from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.phases import PHASE_NAMES
from geomcallbacks.record import GeometryRecord
from geomcallbacks.running.messages import WarnOnce, reason_of

_PRINTED = ("rankme", "alpha_req", "top1_share")  # a row of ten is not read


@dataclass(frozen=True)
class Row:
    """What one measurement gives to the trackers.

    Attributes:
        values: numbers by their full key.
        missing: keys that have no value at this update.
        printed: lines for the terminal, each a part of `values`.
        shown: keys that stand in a progress bar.
        spectra: descending eigenvalues (r,) by key, for trackers that draw histograms.
        sentences: for the terminal.
    """

    values: Mapping[str, float]
    missing: Collection[str] = ()
    printed: Sequence[Mapping[str, float]] = ()
    shown: Collection[str] = ()
    spectra: Mapping[str, Tensor] = field(default_factory=dict)
    sentences: Sequence[str] = ()


def geometry_row(monitor: GeometryMonitor, records: Sequence[GeometryRecord]) -> Row:
    """Give each metric its key, `geometry[/<label>][/<layer>]/<metric>`; see `GeometryMonitor.key_of`.

    `phase` is 0 warm-up, 1 entropy-seeking, 2 compression-seeking. What has no value is `missing`. A probe whose
    measurement has failed has `failed` = 1.
    """
    values: dict[str, float] = {}
    spectra: dict[str, Tensor] = {}
    missing: list[str] = []
    printed, shown, sentences = [], [], []
    for label in monitor.failed:
        values[f"{monitor.key_of(label)}/failed"] = 1.0
        missing += [f"{key}/{name}" for key in monitor.prefixes_of(label) for name in monitor.names]
    for record in records:
        key = monitor.key_of(record.probe, record.layer)
        phase = None if record.phase is None else PHASE_NAMES.index(record.phase)
        found = {f"{key}/{name}": value for name, value in (*record.metrics.items(), ("phase", phase))}
        known = {name: value for name, value in found.items() if value is not None}
        values |= known
        missing += [name for name in found if name not in known and name not in missing]
        printed.append({name: value for name, value in known.items() if name.rpartition("/")[2] in _PRINTED})
        shown.append(f"{key}/rankme")
        if record.eigenvalues is not None and record.metrics["rankme"] is not None:
            spectra[f"{key}/log10_eigenvalues"] = record.eigenvalues
        if record.news is not None:
            sentences.append(f"{key}: {record.news}")
    return Row(values, missing, [line for line in printed if line], shown, spectra, sentences)


def wandb_histograms(spectra: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return eigenspectra as W&B histograms of log₁₀ λ, which W&B draws over steps as a heat map."""
    import numpy as np
    import wandb

    drawn = {}
    for key, eigenvalues in spectra.items():
        # Round-off lies ten decades below the rest and would squeeze it into a few bins.
        meant = eigenvalues[: int(numerical_rank(eigenvalues))].numpy()
        drawn[key] = wandb.Histogram(np_histogram=np.histogram(np.log10(meant), bins=64))
    return drawn


class TrackerQueue:
    """A bounded queue of calls to trackers, worked off in order by one daemon thread.

    A tracker that blocks makes the queue fill up, whereupon further rows are dropped with one warning. A tracker that
    raises costs one warning. The record file is not written here and loses nothing.

    Args:
        size: calls that may wait.

    Attributes:
        warn: gives each warning once.
    """

    def __init__(self, size: int = 256) -> None:
        self._queue: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue(size)
        self._thread: threading.Thread | None = None
        self.warn = WarnOnce()
        self._stuck = False
        weakref.finalize(self, _stop, self._queue)  # a run that ends without its last hook

    def __reduce__(self) -> tuple[type[TrackerQueue], tuple[int]]:
        """Keep the size alone, in a deep copy too: neither thread nor lock can be copied."""
        return TrackerQueue, (self._queue.maxsize,)

    def submit(self, tracker: str, call: Callable[[], None]) -> None:
        """Have `call` made soon; return at once. `tracker` is its name in a warning."""
        if self._thread is None:
            work = (self._queue, self.warn)  # not this object: the thread ends with it
            self._thread = threading.Thread(target=_work, args=work, name="geomcallbacks-trackers", daemon=True)
            self._thread.start()
        try:
            context = contextvars.copy_context()  # some trackers (trackio) keep their run in one
            self._queue.put_nowait((tracker, lambda: context.run(call)))
        except queue.Full:
            message = f"{tracker}: rows of geometry are dropped, because the tracker does not take them fast enough"
            self.warn(f"{tracker} full", message)

    def call(self, tracker: str, call: Callable[[], None]) -> None:
        """Make `call` here and now, for a tracker that knows one thread only; a failure costs one warning."""
        _make(tracker, call, self.warn)

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until all calls are made, but no longer than `timeout` seconds, and only once so long; then warn."""
        deadline = time.monotonic() + (0.0 if self._stuck else timeout)
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)
        self._stuck = self._queue.unfinished_tasks > 0
        if self._stuck:
            waiting = self._queue.unfinished_tasks
            self.warn("stuck", f"a tracker has not taken {waiting} rows of geometry in {timeout:g} s")

    def close(self) -> None:
        """Flush, and let the thread end; a later call begins another."""
        self.flush()
        if self._thread is not None and not self._stuck:
            _stop(self._queue)
            self._thread.join()
            self._thread = None


def _work(calls: queue.Queue[tuple[str, Callable[[], None]] | None], warn: WarnOnce) -> None:
    while (task := calls.get()) is not None:
        _make(*task, warn)
        calls.task_done()
        del task  # or it would hold the tracker until the next row
    calls.task_done()


def _make(tracker: str, call: Callable[[], None], warn: WarnOnce) -> None:
    try:
        call()
    except Exception as error:
        warn(f"{tracker} failed", f"{tracker}: a row of geometry could not be logged ({reason_of(error)})")


def _stop(calls: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Full):  # a tracker that blocks: its thread is a daemon
        calls.put_nowait(None)
