"""No tracker holds up training: rows wait in a queue, and are dropped where it is full."""

from __future__ import annotations

import threading
import time
import warnings

import pytest

from geomcallbacks.adapters.tracker import TrackerQueue


def test_rows_arrive_in_order_on_another_thread() -> None:
    queue, seen = TrackerQueue(), []
    for step in range(100):
        queue.submit("tracker", lambda step=step: seen.append((step, threading.current_thread())))
    queue.flush()
    assert [step for step, _ in seen] == list(range(100))
    threads = {thread for _, thread in seen}
    assert len(threads) == 1
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert thread.daemon  # or a blocked tracker would keep the process alive


def test_no_thread_without_a_row() -> None:
    before = threading.active_count()
    TrackerQueue().flush()
    assert threading.active_count() == before


def test_blocking_tracker_drops_rows_with_one_warning() -> None:
    queue, release, seen = TrackerQueue(size=4), threading.Event(), []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            begin = time.monotonic()
            queue.submit("slow", release.wait)
            while queue._queue.qsize():  # until the thread hangs in it
                time.sleep(0.001)
            for step in range(50):
                queue.submit("slow", lambda step=step: seen.append(step))
            assert time.monotonic() - begin < 5
        assert [str(w.message) for w in caught] == [
            "slow: rows of geometry are dropped, because the tracker does not take them fast enough"
        ]
        assert seen == []
    finally:
        release.set()
    queue.flush()
    assert seen == [0, 1, 2, 3]
    queue.submit("slow", lambda: seen.append("later"))
    queue.flush()
    assert seen[-1] == "later"  # it goes on where the tracker does


def test_flush_waits_no_longer_than_told() -> None:
    queue, release = TrackerQueue(), threading.Event()
    try:
        queue.submit("slow", release.wait)
        queue.submit("slow", lambda: None)
        begin = time.monotonic()
        with pytest.warns(UserWarning, match=r"a tracker has not taken 2 rows of geometry in 0.1 s"):
            queue.flush(timeout=0.1)
        assert 0.05 < time.monotonic() - begin < 3
    finally:
        release.set()


def test_raising_tracker_warns_once_and_others_go_on() -> None:
    queue, seen = TrackerQueue(), []

    def fail(number: int) -> None:
        raise OSError(f"disk {number} is gone")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(5):
            queue.submit("broken", lambda number=number: fail(number))
            queue.submit("sound", lambda number=number: seen.append(number))
        queue.flush()
    assert [str(w.message) for w in caught] == [
        "broken: a row of geometry could not be logged (OSError: disk 0 is gone)"
    ]
    assert seen == [0, 1, 2, 3, 4]


def test_each_broken_tracker_is_named() -> None:
    queue = TrackerQueue()

    def fail() -> None:
        raise RuntimeError("no")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("one", "two", "one"):
            queue.submit(name, fail)
        queue.flush()
    assert [str(w.message).split(":")[0] for w in caught] == ["one", "two"]


def test_a_tracker_that_hangs_is_waited_for_once() -> None:
    queue, release = TrackerQueue(), threading.Event()
    try:
        queue.submit("slow", release.wait)
        with pytest.warns(UserWarning, match="has not taken 1 rows"):
            queue.flush(timeout=0.1)
        begin = time.monotonic()
        queue.flush(timeout=60)
        assert time.monotonic() - begin < 5
    finally:
        release.set()
