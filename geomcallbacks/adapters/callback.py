"""What the callbacks of both frameworks are constructed with. Each framework's room adds the hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from geomcallbacks.adapters.tracker import Row, TrackerQueue, geometry_row
from geomcallbacks.monitor import GeometryMonitor
from geomcallbacks.probe import ProbeSet
from geomcallbacks.running.run_monitor import RunMonitor
from geomcallbacks.schedule import Schedule
from geomcallbacks.settings import DEFAULT_WINDOW, ForwardFn, Layers, OnError, Positions, Precision, Settings


class Monitored:
    """Hold a monitor, and what its numbers need on their way to the trackers.

    Args:
        monitor: what measures.
        make_row: turns what the monitor's `step` gives into a row of the trackers.
        file: name of the record file in the output folder, where the monitor was given none.
    """

    def __init__(self, monitor: RunMonitor, make_row: Callable[[Any, Any], Row], file: str) -> None:
        self.monitor = monitor
        self._make_row, self._file = make_row, file
        self._prefix = f"{Path(file).stem}/"  # of all its keys
        self._queue = TrackerQueue()

    def _refuse_shared_keys(self, others: Iterable[Any]) -> None:
        """Raise ``ValueError`` where another callback's numbers would go under a key of ours."""
        for other in others:
            if isinstance(other, Monitored) and other is not self:
                shared = sorted({*self.monitor.prefixes} & {*other.monitor.prefixes})
                if shared:
                    remedy = "name their probes or measures differently, such as probe={'web': probe}"
                    raise ValueError(f"two callbacks log under {shared[0]!r}: {remedy}")

    def _logs(self, key: str) -> bool:
        """Whether a key is one of this callback's."""
        prefix, _, name = key.rpartition("/")
        return prefix in self.monitor.prefixes and (not self.monitor.names or name in self.monitor.names)

    def _refuse_unknown(self, argument: str, key: str, others: Iterable[Any]) -> None:
        """Raise ``ValueError`` where a framework is told to watch a key that looks like ours and is nobody's.

        Of several callbacks the last to begin decides: by then the keys of all are known.
        """
        alike = (other for other in others if isinstance(other, Monitored) and other._prefix == self._prefix)
        all_of_us = [self, *(other for other in alike if other is not self)]
        if not key.startswith(self._prefix) or not all(each.monitor.running for each in all_of_us):
            return
        if not any(each._logs(key) for each in all_of_us):
            monitors = [each.monitor for each in all_of_us]
            there = [f"{one}/{name}" for m in monitors for one in m.prefixes for name in (m.names or ("…",))[:4]]
            raise ValueError(f"{argument}={key!r} is none of what is logged: give one such as {', '.join(there)}")


class GeometryArguments(Monitored):
    """The constructor of both GeometryCallbacks."""

    monitor: GeometryMonitor

    def __init__(
        self,
        probe: ProbeSet | Mapping[str, ProbeSet],
        *,
        layers: Layers = -1,
        positions: Positions = "last",
        alpha_window: tuple[int, int] = DEFAULT_WINDOW,
        precision: Precision = "training",
        module: str | None = None,
        forward: ForwardFn | None = None,
        batch_size: int = 32,
        intervals: bool = False,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        path: str | Path | None = None,
        on_error: OnError = "warn",
        spectra: bool = True,
        tokens_per_update: int | None = None,
        total_steps: int | None = None,
        from_scratch: bool | None = None,
        allow_change: bool = False,
    ) -> None:
        super().__init__(GeometryMonitor(probe, **Settings.among(locals())), geometry_row, "geometry.jsonl")
