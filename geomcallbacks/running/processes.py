"""What the processes of a run agree on. Without torch.distributed, a run is one process.

In a collective a process waits for the others no longer than the group's time-out, which then ends the run, and one
that never comes leaves the others in a collective of another kind. So they meet in the key-value store of their group
before: there a process waits for as long as the others live.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

_LOGGER = logging.getLogger("geomcallbacks")

#: What all processes say, in the order of their ranks, in; what all of them are told, out.
Judge = Callable[[list[str]], str]

_OURS = "geomcallbacks"
_MARGIN = 30.0  # seconds below the group's time-out, or a quarter of it: the error must come first
_STRANGER = 60.0  # seconds for which one is waited for that has not shown that it holds a monitor
_TELL = 20.0  # seconds after which a line says who is waited for
_PARTING = 5.0  # seconds for which one that is about to raise stays: its end may be the store's


class LostProcessError(RuntimeError):
    """A process has not come, nor given a sign of life."""


def rank() -> int:
    """Return the number of this process in the default group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes in the default group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so."""
    if world_size() == 1:
        return flag
    largest = torch.tensor([int(flag)], dtype=torch.int64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item()) > 0


def first_decides(decision: bool, device: torch.device) -> bool:
    """Return the decision of the first rank."""
    return bool(first_numbers([int(decision)], device)[0])


def first_numbers(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return the whole numbers of the first rank; all ranks give equally many."""
    if world_size() == 1 or not numbers:
        return list(numbers)
    shared = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.broadcast(shared, 0)
    return shared.tolist()


def release_frames(error: BaseException) -> None:
    """Let go of what the frames of an error, and of those behind it, hold: their tensors may have filled the memory."""
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__


def meet(word: str, judge: Judge, device: torch.device, *, wait: float | None = None) -> str:
    """Have every process say a word, and tell each what `judge` makes of all words.

    Args:
        word: what this process says.
        judge: called on one process.
        device: where tensors are exchanged, for a group without a store (MPI).
        wait: seconds for which the others are waited for. None: for as long as they show that they are `alive`, and as
            long as the group's time-out (less a margin) after that, or 60 s for one that never announced itself.

    Raises:
        LostProcessError: a process has not come.
    """
    world = world_size()
    if world == 1:
        return judge([word])
    store = _store()
    if store is None:
        return judge(_gathered(word, device))
    store.set(f"{_OURS}/known/{rank()}", "=")
    room = _room(store, 1)
    store.set(f"{room}/{rank()}", f"={word}")
    if store.add(f"{room}/come", 1) == world:
        words = [store.get(f"{room}/{number}").decode()[1:] for number in range(world)]
        store.compare_set(f"{room}/end", "", f"={judge(words)}")
    else:
        _wait(store, room, world, wait)
    end: str = store.get(f"{room}/end").decode()
    if store.add(f"{room}/gone", 1) == world:
        for name in (*range(world), "come", "end"):
            with suppress(Exception):  # a store that cannot forget
                store.delete_key(f"{room}/{name}")
    if end.startswith("!"):
        raise LostProcessError(end[1:])
    return end[1:]


def assemble() -> None:
    """Number the meetings of another run anew.

    Who missed a meeting of the last one, or left it by an error, would else take old words for those of now.
    """
    if world_size() > 1 and (store := _store()) is not None:
        store.add(f"{_OURS}/runs/{rank()}", 1)


def worst(status: int, device: torch.device) -> int:
    """Return the largest status of any process. It takes no memory of the device, which may have run out."""
    return int(meet(str(status), lambda words: max(words, key=int), device))


def announce() -> None:
    """Let the others know that this process will meet them, so that they wait for it if it is late."""
    if world_size() > 1 and (store := _store()) is not None:
        store.set(f"{_OURS}/known/{rank()}", "=")


def all_alike(facts: Mapping[str, Any], remedy: str, device: torch.device) -> None:
    """Raise the same ``ValueError`` on every process unless all hold equal facts.

    Args:
        facts: by name; what JSON holds.
        remedy: ends the message.
        device: see `meet`.

    Raises:
        ValueError: facts differ, or a process never came to tell its own.
    """

    def judge(words: list[str]) -> str:
        first, *others = map(json.loads, words)
        for number, other in enumerate(others, start=1):
            for name in dict.fromkeys((*first, *other)):
                mine, its = (json.dumps(held.get(name), ensure_ascii=False) for held in (first, other))
                if mine != its:
                    return f"the processes of this run differ in {name}: {mine} on process 0, {its} on process {number}"
        return ""

    try:
        problem = meet(json.dumps(facts, default=str), judge, device)
    except LostProcessError as error:
        problem = str(error)
    if problem:
        _part()
        raise ValueError(f"{problem}: {remedy}")


@contextmanager
def refusing_together(device: torch.device) -> Iterator[None]:
    """Raise on all processes what one raises inside: the others, a ``ValueError`` with its words."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # its own error says more; others may wait for it where no word reaches them
            meet(f"{type(error).__name__}: {error}", _first_failure, device, wait=_PARTING)
            _part()
        raise
    if failure := meet("", _first_failure, device):
        raise ValueError(failure)


@contextmanager
def alive() -> Iterator[None]:
    """Show the others that this process lives, for as long as the work inside takes."""
    store = _store() if world_size() > 1 else None
    if store is None:
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        with suppress(Exception):  # the store has gone: whoever waits for us knows
            while not ended.wait(_patience(store) / 5):
                store.add(f"{_OURS}/beats/{rank()}", 1)

    thread = threading.Thread(target=beat, name="geomcallbacks-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process go through what is inside before the others, who wait in no collective."""
    device = torch.device("cpu")
    if rank() > 0:
        meet("", "".join, device)
    try:
        with alive():
            yield
    finally:
        if rank() == 0:
            meet("", "".join, device)


def _first_failure(words: list[str]) -> str:
    return next((f"on process {number}: {word}" for number, word in enumerate(words) if word), "")


def _store() -> Any:
    """Return the store of the default group, or None where it has none."""
    from torch.distributed import distributed_c10d  # some builds of torch have none

    store = distributed_c10d._get_default_store()
    return None if type(store) is distributed_c10d.Store else store  # MPI's stands for none


def _room(store: Any, ahead: int) -> str:
    """Return where this process meets the others: the latest meeting of its run, or one `ahead` of it."""
    run = store.add(f"{_OURS}/runs/{rank()}", 0)
    return f"{_OURS}/{run}/{store.add(f'{_OURS}/meetings/{run}/{rank()}', ahead)}"


def _patience(store: Any) -> float:
    """Return for how many seconds a process may give no sign of life."""
    limit: float = store.timeout.total_seconds()
    return limit - min(_MARGIN, limit / 4)


def _wait(store: Any, room: str, world: int, wait: float | None) -> None:
    """Wait for the end of a meeting; end it where a process is given up."""
    begin = looked = time.monotonic()
    pause, told = 1e-3, False
    lives: dict[int, tuple[int, float]] = {}  # of a process that has not come: its beats, and since when so many
    while not store.check([f"{room}/end"]):
        time.sleep(pause)
        now = time.monotonic()
        pause = min(1.5 * pause, 0.05 + world / 1e4)
        if now - looked < min(2.0, _patience(store) / 20):
            continue
        looked, lost = now, []
        for number in (number for number in range(world) if not store.check([f"{room}/{number}"])):
            beats = store.add(f"{_OURS}/beats/{number}", 0)
            since = now if number in lives else begin
            lives[number] = lives[number] if lives.get(number, (-1,))[0] == beats else (beats, since)
            allowed, silent = _patience(store) if wait is None else wait, now - lives[number][1]
            if not store.check([f"{_OURS}/known/{number}"]):
                allowed = min(allowed, _STRANGER)
                if silent > _TELL and not told:
                    told = True
                    _LOGGER.warning("process %d waits for process %d to hold the same callback", rank(), number)
            if silent > allowed:
                lost.append(number)
        if lost:
            which = f"process {lost[0]} has" if len(lost) == 1 else f"processes {', '.join(map(str, lost))} have"
            reason = f"{which} not come to measure with the others within {now - begin:.0f} s"
            store.compare_set(f"{room}/end", "", f"!{reason}")


def _part() -> None:
    """Stay until the others have read the end of the latest meeting, since the store may end with this process."""
    store = _store() if world_size() > 1 else None
    if store is None:
        return
    room = _room(store, 0)
    last = time.monotonic() + min(_PARTING, store.timeout.total_seconds() / 10)
    while time.monotonic() < last and store.add(f"{room}/gone", 0) < world_size():
        time.sleep(0.01)


def _gathered(word: str, device: torch.device) -> list[str]:
    """Return every process's word, exchanged as tensors."""
    data = torch.tensor(list(word.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(data)], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    longest = max(1, *(int(one) for one in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    words = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(words, padded)
    return [bytes(text[: int(one)].tolist()).decode() for text, one in zip(words, sizes, strict=True)]
