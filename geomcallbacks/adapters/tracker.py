"""Writes to experiment trackers from one daemon thread, so that none of them can hold up training."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from geomcallbacks.metrics import numerical_rank
from geomcallbacks.running.messages import WarnOnce

if TYPE_CHECKING:
    from geomcallbacks.monitor import GeometryMonitor
    from geomcallbacks.record import GeometryRecord

_Job = tuple[str, Callable[[], None]]


class TrackerQueue:
    """A bounded queue of calls to trackers, worked off in order by one daemon thread.

    A tracker that blocks makes the queue fill up, whereupon further rows are dropped with one warning. A tracker that
    raises costs one warning. The record file is not written here and loses nothing.

    Args:
        size: calls that may wait.
    """

    def __init__(self, size: int = 256) -> None:
        self._queue: queue.Queue[_Job] = queue.Queue(size)
        self._thread: threading.Thread | None = None
        self._warn = WarnOnce()
        self._stuck = False

    def __getstate__(self) -> dict[str, Any]:
        """Only the size: neither thread nor lock can go to another process (strategies that spawn, deep copies)."""
        return {"size": self._queue.maxsize}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["size"])  # type: ignore[misc]

    def submit(self, tracker: str, call: Callable[[], None]) -> None:
        """Have `call` made soon; returns at once. `tracker` is its name in a warning."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="geomcallbacks-trackers", daemon=True)
            self._thread.start()
        try:
            context = contextvars.copy_context()  # some trackers (trackio) keep their run in one
            self._queue.put_nowait((tracker, lambda: context.run(call)))
        except queue.Full:
            message = f"{tracker}: rows of geometry are dropped, because the tracker does not take them fast enough"
            self._warn(f"{tracker} full", message)

    def call(self, tracker: str, call: Callable[[], None]) -> None:
        """Make `call` here and now, for a tracker that knows one thread only; a failure costs one warning."""
        try:
            call()
        except Exception as error:
            message = f"{tracker}: a row of geometry could not be logged ({type(error).__name__}: {error})"
            self._warn(f"{tracker} failed", message)

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until all calls are made, but no longer than `timeout` seconds, and only once so long; then warn."""
        deadline = time.monotonic() + (0.0 if self._stuck else timeout)
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)
        self._stuck = self._queue.unfinished_tasks > 0
        if self._stuck:
            waiting = self._queue.unfinished_tasks
            self._warn("stuck", f"a tracker has not taken {waiting} rows of geometry in {timeout:g} s")

    def _work(self) -> None:
        while True:
            tracker, call = self._queue.get()
            self.call(tracker, call)
            self._queue.task_done()


def wandb_spectra(monitor: GeometryMonitor, records: list[GeometryRecord]) -> dict[str, Any]:
    """The eigenspectra as W&B histograms of log₁₀ λ, which W&B draws over steps as a heat map.

    Returns:
        `<log_key>/log10_eigenvalues` for each record that has a spectrum with any variance.
    """
    import numpy as np
    import wandb

    spectra = {}
    for record in records:
        if record.eigenvalues is None or record.metrics["rankme"] is None:
            continue
        # Round-off lies ten decades below the rest and would squeeze it into a few bins.
        meant = record.eigenvalues[: int(numerical_rank(record.eigenvalues))].numpy()
        counts = np.histogram(np.log10(meant), bins=64)
        spectra[f"{monitor.log_key(record)}/log10_eigenvalues"] = wandb.Histogram(np_histogram=counts)
    return spectra
