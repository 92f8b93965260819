"""Each checkpoint with its files, the next one's being fetched while it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.hub import Hub


def fetch_ahead(
    checkpoints: Sequence[Checkpoint], hub: Hub, *, evict: bool
) -> Iterator[tuple[Checkpoint, Future[Path]]]:
    """Give each checkpoint, and its folder or file once that is there; `evict`: delete it after its turn."""
    ahead: Future[Path] | None = None
    for place, checkpoint in enumerate(checkpoints, start=1):
        current = ahead or _in_background(checkpoint, hub)
        wait([current])
        if evict:  # while nothing is being fetched: revisions share files
            hub.evict(keep=(checkpoint.model, checkpoint.revision))
        ahead = _in_background(checkpoints[place], hub) if place < len(checkpoints) else None
        yield checkpoint, current
    if evict:
        hub.evict()


def _in_background(checkpoint: Checkpoint, hub: Hub) -> Future[Path]:
    """Fetch in a thread that does not keep the process alive, as that of an executor would."""
    future: Future[Path] = Future()

    def fetch() -> None:
        try:
            if checkpoint.problem is not None:
                raise ValueError(checkpoint.problem)
            future.set_result(checkpoint.source or hub.fetch(checkpoint.model, checkpoint.revision))
        except Exception as error:
            future.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    return future
