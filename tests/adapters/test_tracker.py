"""No tracker holds up training: rows wait in a queue, and are dropped where it is full."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from geomcallbacks.adapters.tracker import TrackerQueue


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a tracker that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


def test_rows_arrive_in_order_on_a_thread_that_the_first_row_starts() -> None:
    before, queue, seen = threading.active_count(), TrackerQueue(), []
    queue.flush()
    assert threading.active_count() == before
    for step in range(100):
        queue.submit("tracker", lambda step=step: seen.append((step, threading.current_thread())))
    queue.flush()
    assert [step for step, _ in seen] == list(range(100))
    (thread,) = {thread for _, thread in seen}
    assert thread is not threading.main_thread()
    assert thread.daemon  # or a tracker that hangs would keep the process alive


def test_a_tracker_that_hangs_drops_rows_with_one_warning(release: threading.Event) -> None:
    queue, hangs, seen = TrackerQueue(size=4), threading.Event(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        queue.submit("slow", lambda: (hangs.set(), release.wait()))
        assert hangs.wait(10)
        for step in range(50):
            queue.submit("slow", lambda step=step: seen.append(step))
    assert [str(warning.message) for warning in caught] == [
        "slow: rows of geometry are dropped, because the tracker does not take them fast enough"
    ]
    assert seen == []
    release.set()
    queue.flush()
    assert seen == [0, 1, 2, 3]
    queue.submit("slow", lambda: seen.append("later"))
    queue.flush()
    assert seen[-1] == "later"  # it goes on where the tracker does


def test_a_tracker_that_hangs_is_waited_for_once_and_no_longer_than_told(release: threading.Event) -> None:
    queue = TrackerQueue()
    queue.submit("slow", release.wait)
    queue.submit("slow", lambda: None)
    begin = time.monotonic()
    with pytest.warns(UserWarning, match=r"a tracker has not taken 2 rows of geometry in 0.1 s"):
        queue.flush(timeout=0.1)
    assert time.monotonic() - begin > 0.05
    queue.flush(timeout=60)
    assert time.monotonic() - begin < 10


def test_each_tracker_that_raises_is_named_once_and_others_go_on() -> None:
    queue, seen = TrackerQueue(), []

    def fail(number: int) -> None:
        raise OSError(f"disk {number} is gone")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(4):
            for name in ("one", "two"):
                queue.submit(name, lambda number=number: fail(number))
            queue.submit("sound", lambda number=number: seen.append(number))
        queue.flush()
    reason = "a row of geometry could not be logged (OSError: disk 0 is gone)"
    assert [str(warning.message) for warning in caught] == [f"one: {reason}", f"two: {reason}"]
    assert seen == [0, 1, 2, 3]
