"""What test_distributed runs, in one process and in each of two. It starts fast: no framework is imported."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from geomcallbacks import GeometryMonitor, ProbeSet, Schedule
from geomcallbacks.record import read_lines
from geomcallbacks.running.writer import RecordWriter
from geomcallbacks.spectra.moments import Moments, Rows


class Model(nn.Module):
    """Embedding and recurrent layer of d = 8; raises, where told, when it is given too many rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(100, 8)
        self.mix = nn.GRU(8, 8, batch_first=True)
        self.fails: Callable[[int], Exception | None] = lambda rows: None

    def forward(self, ids_bt: Tensor) -> Tensor:
        error = self.fails(len(ids_bt))
        if error is not None:
            raise error
        return self.mix(self.embed(ids_bt))[0]


def probe(n: int) -> ProbeSet:
    generator = torch.Generator().manual_seed(n)
    lengths = torch.randint(5, 12, (n,), generator=generator).tolist()
    return ProbeSet.from_token_ids([torch.randint(1, 99, (m,), generator=generator).tolist() for m in lengths])


def wrapped(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def measured(n: int, model: nn.Module | None = None, **changes: Any) -> dict[str, Any]:
    """What a monitor says of a model, wrapped by DDP where there are two processes."""
    settings = {"layers": ["embed", "mix"], "alpha_window": (1, 3), "batch_size": 8, "on_error": "raise"} | changes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = GeometryMonitor(probe(n), **settings).measure(wrapped(model or Model()), 0)
    said = [str(w.message) for w in caught if "biased downward" not in str(w.message)]
    keys = ("n", "d", "layer", "metrics", "reasons", "intervals", "batch_size", "notes", "precision")
    found = [{key: getattr(record, key) for key in keys} for record in records]
    spectra = [[] if record.eigenvalues is None else record.eigenvalues.tolist() for record in records]
    return {"records": found, "spectra": spectra, "warnings": said}


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def on_second_process(limit: int, error: Exception) -> nn.Module:
    """A model that fails beyond so many rows, on the second process alone."""
    model = Model()
    if dist.is_initialized() and rank() == 1:
        model.fails = lambda rows: error if rows > limit else None
    return model


def fails_and_goes_on() -> dict[str, Any]:
    model = Model()
    watch = GeometryMonitor(probe(40), layers="mix", alpha_window=(1, 3), batch_size=8)
    ddp = wrapped(model)
    watch.start(ddp)
    if rank() == 1:
        model.fails = lambda rows: KeyError("injected")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failed = watch.measure(ddp, 1)
    model.fails = lambda rows: None
    (later,) = watch.measure(ddp, 2)
    return {"failed": len(failed), "warnings": [str(w.message) for w in caught], "later": later.metrics}


def no_room_on_one(kind: type, n: int) -> dict[str, Any]:
    """The second process has no memory for what comes behind the pass, until batches are small."""
    prepare = kind.prepare

    def fails(self: Any, counts_n: torch.Tensor) -> None:
        if rank() == 1 and dist.is_initialized() and fails.times < 2:
            fails.times += 1
            raise torch.OutOfMemoryError("injected")
        prepare(self, counts_n)

    fails.times = 0
    kind.prepare = fails
    try:
        return measured(n, layers="mix")
    finally:
        kind.prepare = prepare


def told_to_end() -> dict[str, Any]:
    """A signal has reached the second process alone: before a measurement, and in the midst of another."""
    model = wrapped(Model())
    told, asked = {"now": False}, []
    watch = GeometryMonitor(
        {"a": probe(40), "b": probe(41)},
        layers="mix",
        alpha_window=(1, 3),
        batch_size=4,
        schedule=Schedule(every=1),
        on_error="raise",
    )

    def ending() -> bool:
        asked.append(1)
        return rank() == 1 and (told["now"] or len(asked) == told.get("at"))

    watch.ending = ending
    found = [len(watch.step(model, 0))]
    told["now"] = True
    found.append(len(watch.step(model, 1)))
    told["now"] = False
    told["at"] = len(asked) + 4
    found.append(len(watch.step(model, 2)))
    told["at"] = None
    found.append(len(watch.step(model, 2)))
    found.append(len(watch.step(model, 3)))
    return {"records": found if dist.is_initialized() else [2, 0, 0, 2, 2]}


def spoilt_row() -> dict[str, Any]:
    model = Model()
    rows = probe(40)
    shortest = int(rows.lengths_n.argmin())
    last = int(rows.input_ids_nt[shortest, rows.lengths_n[shortest] - 1])
    model.embed.weight.data[last] = torch.nan
    return measured(40, model, layers="embed")


def budgeted(path: Path | None, budget: float, updates: int, train: Callable[[int], None]) -> dict[str, Any]:
    """At which updates a run within a budget is measured, and what it has spent."""
    watch = GeometryMonitor(
        probe(40),
        layers="mix",
        alpha_window=(1, 3),
        batch_size=8,
        schedule=Schedule(per_decade=0, every=1, budget=budget),
        path=path,
        total_steps=updates,
    )
    model = Model()
    ddp = wrapped(model)
    watch.start(ddp)
    model.fails = lambda rows: train(0)
    steps = [record.step for record in watch.step(ddp, 0)]
    for step in range(1, updates + 1):
        train(step)
        steps += [record.step for record in watch.step(ddp, step)]
    watch.close()
    return {"steps": steps, "spent": watch.state_dict()["spent"]}


def clocks_differ() -> list[int]:
    """The second process's updates take no time by its own clock, so that its own ledger would allow nothing."""
    now = [0.0]

    def train(step: int) -> None:
        now[0] += 1000.0 if rank() == 0 and step > 0 else 1.0 if step == 0 else 0.0

    with mock.patch("geomcallbacks.running.base.time.perf_counter", side_effect=lambda: now[0]):
        return budgeted(None, 1.0, 6, train)["steps"]


def loads_differ(folder: Path) -> dict[str, Any]:
    """One process trains slowly and the other is slow to measure: a real clock, and 0.2 of the training time."""
    measure, update = ((0.002, 0.02), (0.02, 0.0))[rank()]
    (folder / "load").mkdir(exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = budgeted(folder / "load" / "g.jsonl", 0.2, 40, lambda step: time.sleep(update if step else measure))
    lines = read_lines(folder / "load" / "g.jsonl") if rank() == 0 else []
    said = [str(one.message) for one in caught if "does not allow" in str(one.message)]
    return found | {"skips": [line["step"] for line in lines if line["kind"] == "skip"], "warnings": len(said)}


def reduced_store(kind: type, parts: list[int]) -> list[float]:
    """A store filled with this process's part of fifty rows and reduced, or with all of them."""
    rows_nd = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 100.0
    starts = [0, parts[0], 50]
    mine = slice(starts[rank()], starts[rank() + 1]) if dist.is_initialized() else slice(None)
    store = kind(4)
    store.update(rows_nd[mine], torch.arange(50)[mine])
    if dist.is_initialized():
        store.prepare(torch.ones(50, dtype=torch.int64))
        store.all_reduce((dist.group.WORLD,))
    if isinstance(store, Rows):
        return store.finish().rows_nd.flatten().tolist()
    n, mean_d, m2_dd = store.finish()
    return [n, *mean_d.tolist(), *m2_dd.flatten().tolist()]


def writes_once(folder: Path) -> list[str]:
    watch = GeometryMonitor(probe(40), layers="mix", alpha_window=(1, 3), path=folder / "run" / "g.jsonl")
    watch.measure(wrapped(Model()), 0)
    watch.close()
    if dist.is_initialized():
        dist.barrier()
    return sorted(str(path.relative_to(folder / "run")) for path in (folder / "run").rglob("*") if path.is_file())


def phase_after_a_restart(folder: Path) -> str | None:
    """The curve so far stands in a file that the first process alone reads."""
    path = folder / "restart" / "g.jsonl"
    if rank() == 0:
        writer = RecordWriter(path, 0, {})
        for step in range(9):
            writer.write({"step": step, "probe": "probe", "layer": "mix", "rankme": 900.0 * 0.6**step})
        writer.close()
    if dist.is_initialized():
        dist.barrier()
    watch = GeometryMonitor(probe(40), layers="mix", alpha_window=(1, 3), path=path)
    model = wrapped(Model())
    watch.start(model, step=8)
    (record,) = watch.measure(model, 9)
    watch.close()
    return record.phase


def scenarios(folder: Path) -> dict[str, Callable[[], Any]]:
    oom, bf16 = torch.OutOfMemoryError("injected"), torch.bfloat16
    return {
        "n > d, odd": lambda: measured(65),
        "n <= d": lambda: measured(7, batch_size=2),
        "n = d": lambda: measured(8, batch_size=3),
        "one batch": lambda: measured(33, batch_size=64),
        "one batch, n <= d": lambda: measured(7, batch_size=64),
        "fewer rows than processes": lambda: measured(1, positions=4),
        "several positions": lambda: measured(21, positions=3),
        "all positions": lambda: measured(21, positions="all"),
        "intervals": lambda: measured(45, intervals=True),
        "bf16 model": lambda: measured(41, Model().to(bf16), layers="embed"),
        "bf16 model, n <= d": lambda: measured(7, Model().to(bf16), layers="embed", batch_size=2),
        "non-finite on one": spoilt_row,
        "out of memory on one": lambda: measured(65, on_second_process(3, oom), on_error="warn"),
        "failure on one": fails_and_goes_on,
        "no room on one": lambda: no_room_on_one(Moments, 65),
        "no room on one for rows": lambda: no_room_on_one(Rows, 7),
        "told to end on one": told_to_end,
        "clocks differ": clocks_differ,
        "loads differ": lambda: loads_differ(folder),
        "moments": lambda: reduced_store(Moments, [37]),
        "moments of an idle process": lambda: reduced_store(Moments, [50]),
        "rows": lambda: reduced_store(Rows, [13]),
        "rows of an idle process": lambda: reduced_store(Rows, [50]),
        "files": lambda: writes_once(folder),
        "restart": lambda: phase_after_a_restart(folder),
    }


def join(number: int, world_size: int, folder: Path, seconds: float) -> None:
    """Make this process one of a group on gloo that waits no longer than so many seconds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=number,
        world_size=world_size,
        timeout=timedelta(seconds=seconds),
    )


def main(number: int, world_size: int, folder: Path) -> None:
    join(number, world_size, folder, seconds=30)
    found = {"world size": dist.get_world_size()}
    for name, call in scenarios(folder).items():
        found[name] = call()
    (folder / f"rank-{number}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
