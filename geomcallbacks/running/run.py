"""What a monitor knows of the run that it is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from geomcallbacks.running.budget import Budget
from geomcallbacks.running.run_file import RunFile

#: The remedy where processes differ.
ALIKE = (
    "add the callback, or call the monitor, on every process of the run, with the same settings, and with a probe or"
    " measures built from the same texts and seed, never from a process's own share of the data"
)


@dataclass
class Run:
    """What belongs to one run, from `start` to `close`.

    Attributes:
        total_steps: its updates, where known.
        ending: says whether this process is to end.
        budget: what measuring has cost; None where the schedule sets no bound.
        step: the last update that was asked about.
        settled: the last update whose measurement was taken, failed or skipped.
        file: its record file.
        attempt: how often it has begun at update 0.
        driven: an adapter drives the monitor, and has made the arithmetic of training the active one.
        weights: says which weights the model holds now (`geomcallbacks.reading.weights`).
    """

    total_steps: int | None
    ending: Callable[[], bool] | None
    budget: Budget | None
    step: int
    settled: int | None
    file: RunFile
    attempt: int = 1
    driven: bool = False
    weights: Callable[[], str] | None = None
