"""What test_meeting runs in each of several processes: what they do before, and instead of, a collective."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import launcher
import tiny
import torch
import torch.distributed as dist
from behaviour_measures import KEYS, make
from behaviour_rows import choices, completions
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from geomcallbacks import GeometryMonitor, Schedule
from geomcallbacks.behaviour import BehaviourMonitor
from geomcallbacks.running import processes

TIMEOUT = 4.0  # of the group
EVERY = Schedule(every=1, per_decade=0, budget=None)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def wrapped(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def said(action: Callable[[], Any]) -> str:
    """What is raised, or that nothing was."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def geometry(probe: Any = None, **changes: Any) -> GeometryMonitor:
    settings = {"alpha_window": tiny.WINDOW, "schedule": EVERY, "batch_size": 8, "on_error": "raise"}
    return GeometryMonitor(probe or tiny.probe(), **settings | changes)


def unlike() -> dict[str, str]:
    """Monitors that the last process holds with something else."""
    last = rank() == dist.get_world_size() - 1
    shard = tiny.probe(seed=1 + last)
    one, other = tiny.probe(seed=5), tiny.probe(seed=6)
    order = {"b": other, "a": one} if last else {"a": one, "b": other}
    loss = {"loss": make("loss", completions(11 + last), tiny.probe(), choices())}
    monitors = {
        "probe": lambda: geometry(shard),
        "size": lambda: geometry(tiny.probe(n=64 + 8 * last)),
        "order": lambda: geometry(order),
        "settings": lambda: geometry(positions=2 if last else "last"),
        "schedule": lambda: geometry(schedule=Schedule(every=1 + last)),
        "on_error": lambda: geometry(on_error="warn" if last else "raise"),
        "behaviour": lambda: BehaviourMonitor(loss),
        "kind": lambda: BehaviourMonitor(loss) if last else geometry(),
    }
    model = wrapped(tiny.model())
    return {name: said(lambda made=made: made().start(model)) for name, made in monitors.items()}


def refused_on_one() -> str:
    """The model of the last process alone has fewer words than the probe."""
    monitor, model = geometry(), tiny.model()
    if rank() == dist.get_world_size() - 1:
        model.resize_token_embeddings(50)
    return said(lambda: monitor.start(model))


class Training:
    """Updates of a replicated model; what it ends with shows whether anything has disturbed it."""

    def __init__(self) -> None:
        self.model = wrapped(tiny.model())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def update(self, step: int) -> None:
        ids_nt, mask_nt = tiny.rows(n=4, seed=10 * step + rank())
        self.model(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def run(self, *monitors: Any) -> list[float]:
        for monitor in monitors:
            monitor.start(self.model)
        for step in range(1, 4):
            self.update(step)
            for monitor in monitors:
                monitor.step(self.model, step)
        for monitor in monitors:
            monitor.close()
        return [float(p.detach().double().sum()) for p in self.model.parameters()]


@contextmanager
def slow_forward(seconds: float) -> Iterator[None]:
    """The last process needs so long for its first pass of a probe."""
    left = [seconds] if rank() == dist.get_world_size() - 1 else []
    read = meeting_reader().read

    def slow(*given: Any, **settings: Any) -> Any:
        if left:
            time.sleep(left.pop())
        return read(*given, **settings)

    with mock.patch.object(meeting_reader(), "read", slow):
        yield


def meeting_reader() -> Any:
    from geomcallbacks.reading.reader import Reader

    return Reader


def longer_than_the_time_out() -> dict[str, Any]:
    """One function, one share of a measure, and one share of a probe each last longer than the group's time-out."""
    naps, asked = [1.6 * TIMEOUT], []

    def own(model: nn.Module) -> dict[str, float]:
        asked.append(rank())
        time.sleep(naps.pop() if naps else 0.0)
        return {"number": 1.5}

    loss = make("loss", completions(), tiny.probe(), choices())
    part = type(loss).part
    lags = [1.6 * TIMEOUT] if rank() == 1 else []

    def slow(self: Any, *given: Any) -> Any:
        time.sleep(lags.pop() if lags else 0.0)
        return part(self, *given)

    behaviour = BehaviourMonitor({"own": own, "loss": loss}, schedule=EVERY, on_error="raise")
    alone, begin = Training().run(), time.monotonic()
    with mock.patch.object(type(loss), "part", slow):
        watched = Training().run(behaviour)
    middle = time.monotonic()
    with slow_forward(1.6 * TIMEOUT):
        measured = Training().run(geometry())
    seconds = [middle - begin, time.monotonic() - middle]
    return {"alone": alone, "watched": watched, "measured": measured, "seconds": seconds, "asked": asked}


def shares() -> dict[str, Any]:
    """The numbers of every measure of the package, and which rows went through the model of this process."""
    model, found, rows = tiny.model(), {}, {}
    for name in KEYS:
        seen = rows.setdefault(name, [])
        hook = model.register_forward_pre_hook(
            lambda module, args, given, seen=seen: seen.append(len(given["input_ids"])), with_kwargs=True
        )
        measure = make(name, completions(), tiny.probe(), choices(), batch_size=1 if name == "rollouts" else 3)
        monitor = BehaviourMonitor({"it": measure}, on_error="raise")
        monitor.start(model)
        seen.clear()
        found[name] = monitor.measure(model, 0)
        hook.remove()
    measures = {name: make(name, completions(), tiny.probe(), choices()) for name in KEYS}
    together = BehaviourMonitor(measures, on_error="raise").measure(model, 0)
    return {"numbers": found, "rows": rows, "together": together}


def fails_on_one() -> dict[str, Any]:
    """The share of the last process fails, at first; then all goes on."""
    loss = make("loss", completions(), tiny.probe(), choices(), batch_size=3)
    part, broken = type(loss).part, [1] if rank() == dist.get_world_size() - 1 else []

    def breaks(self: Any, *given: Any) -> Any:
        if broken:
            raise KeyError(f"injected {broken.pop()}")
        return part(self, *given)

    monitor, model = BehaviourMonitor({"loss": loss, "own": lambda model: {"n": 1.0}}), tiny.model()
    with mock.patch.object(type(loss), "part", breaks), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [monitor.measure(model, step) for step in (0, 1)]
    return {"found": found, "warnings": [str(w.message) for w in caught]}


def without_a_store() -> dict[str, Any]:
    """A group that has none, such as MPI's."""
    with mock.patch.object(processes, "_store", return_value=None):
        words = ["", "é" * 300, "third"]
        heard = processes.meet(words[rank()], "|".join, torch.device("cpu"))
        return {"heard": heard, "unlike": unlike()["probe"]}


def missed() -> dict[str, Any]:
    """The last process leaves a run before its measurement, as by an error of the user's; then all begin another."""
    model, left, following = tiny.model(), geometry(on_error="warn"), geometry()
    left.start(model)
    if rank() == dist.get_world_size() - 1:
        time.sleep(0.8 * TIMEOUT)
    else:
        left.measure(model, 0)
    left.close()
    numbers: list[Any] = []
    heard = said(lambda: numbers.extend(dict(record.metrics) for record in following.measure(model, 0)))
    return {"failed": left.failed, "said": heard, "numbers": numbers}


def absent() -> dict[str, Any]:
    """The last process never comes to measure: it waits in a collective of its own training."""
    model, begin = tiny.model(), time.monotonic()
    if rank() == dist.get_world_size() - 1:
        time.sleep(TIMEOUT)
        return {}
    monitor = geometry()
    return {"said": said(lambda: monitor.start(model)), "seconds": time.monotonic() - begin}


def late() -> str:
    """The last process comes late, within the time-out."""
    if rank() == dist.get_world_size() - 1:
        time.sleep(0.4 * TIMEOUT)
    return said(lambda: geometry().start(tiny.model()))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    found: dict[str, Any] = {"world size": dist.get_world_size(), "unlike": unlike(), "refused": refused_on_one()}
    found |= {"without a store": without_a_store(), "late": late()}
    found |= {"long": longer_than_the_time_out(), "shares": shares(), "fails": fails_on_one(), "missed": missed()}
    found["absent"] = absent()
    launcher.report(folder, found)
    time.sleep(1.0)  # in no collective: the last process is out of step
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
