"""What test_distributed runs in each of two processes, and again in one. It starts fast: no framework is imported."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import launcher
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from geomcallbacks import GeometryMonitor, ProbeSet, Schedule

#: What two processes give as one does: rows of the probe (d = 8), and how they are read.
SAME: dict[str, tuple[int, dict[str, Any]]] = {
    "n > d, odd": (65, {}),
    "n <= d": (7, {"batch_size": 2}),
    "n = d": (8, {"batch_size": 3}),
    "one batch": (33, {"batch_size": 64}),
    "one batch, n <= d": (7, {"batch_size": 64}),
    "fewer rows than processes": (1, {"positions": 4}),
    "several positions": (21, {"positions": 3}),
    "all positions": (21, {"positions": "all"}),
    "intervals": (45, {"intervals": True}),
    "bf16 model": (41, {"layers": "embed", "dtype": torch.bfloat16}),
    "bf16 model, n <= d": (7, {"layers": "embed", "dtype": torch.bfloat16, "batch_size": 2}),
}
#: Rows of the probe, and whether the second process runs out of memory in the forward pass or behind it.
MEMORY = {"in the pass": (65, True), "behind the pass": (65, False), "behind the pass, n <= d": (7, False)}


class Model(nn.Module):
    """Embedding and recurrent layer of d = 8. `before` is given the number of rows of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(100, 8)
        self.mix = nn.GRU(8, 8, batch_first=True)
        self.before: Callable[[int], None] = lambda rows: None

    def forward(self, ids_bt: Tensor) -> Tensor:
        self.before(len(ids_bt))
        return self.mix(self.embed(ids_bt))[0]


def probe(n: int) -> ProbeSet:
    generator = torch.Generator().manual_seed(n)
    lengths = torch.randint(5, 12, (n,), generator=generator).tolist()
    return ProbeSet.from_token_ids([torch.randint(1, 99, (m,), generator=generator).tolist() for m in lengths])


def monitor(rows: ProbeSet | dict[str, ProbeSet], **changes: Any) -> GeometryMonitor:
    return GeometryMonitor(rows, **{"layers": "mix", "alpha_window": (1, 3), "batch_size": 8} | changes)


def wrapped(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def on_second() -> bool:
    return dist.is_initialized() and dist.get_rank() == 1


def measured(n: int, model: Model | None = None, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    """The records of one measurement, flat, and its warnings."""
    settings = {"layers": ["embed", "mix"], "on_error": "raise"} | changes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = monitor(probe(n), **settings).measure(wrapped((model or Model()).to(dtype)), 0)
    given = [str(w.message) for w in caught if "biased downward" not in str(w.message)]
    keys = ("n", "d", "layer", "metrics", "reasons", "batch_size", "notes", "precision")
    found = [{key: getattr(record, key) for key in keys} for record in records]
    for row, record in zip(found, records, strict=True):
        # A process that has used accelerate knows that there is no mixed precision.
        row["notes"] = [note for note in record.notes if "precision of training" not in note]
        row["spectrum"] = [] if record.eigenvalues is None else record.eigenvalues.tolist()
        row["intervals"] = [end for ends in record.intervals.values() for end in ends]
    return {"records": found, "warnings": given}


def short_of_memory(n: int, in_pass: bool) -> dict[str, Any]:
    """The second process has no memory until batches are of two rows; behind the pass, once, where rows are put
    together.
    """
    model, left, put_together = Model(), [torch.OutOfMemoryError("injected")], torch.cat

    def out_of_memory(rows: int) -> None:
        if rows > 3:
            raise torch.OutOfMemoryError("injected")

    def cat(*given: Any, **settings: Any) -> Tensor:
        if left:
            raise left.pop()
        return put_together(*given, **settings)

    if not on_second():
        return measured(n, model)
    if in_pass:
        model.before = out_of_memory
        return measured(n, model)
    with mock.patch("torch.cat", cat):
        return measured(n, model)


def fails_and_goes_on() -> dict[str, Any]:
    """Two measurements with a failure of the second process in the first of them."""

    def fail(rows: int) -> None:
        raise KeyError("injected")

    model, watch = Model(), monitor(probe(40))
    ddp = wrapped(model)
    watch.start(ddp)
    if on_second():
        model.before = fail
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failed = watch.measure(ddp, 1)
    model.before = lambda rows: None
    (later,) = watch.measure(ddp, 2)
    return {"failed": len(failed), "warnings": [str(w.message) for w in caught], "later": later.metrics}


def stopped() -> list[int]:
    """Records of each step, where a signal has reached the second process: before step 1, and in the midst of step 2,
    which is then taken again.
    """
    model = wrapped(Model())
    told, asked = {"now": False, "at": 0}, []
    every = Schedule(every=1, per_decade=0)
    watch = monitor({"a": probe(40), "b": probe(41)}, batch_size=4, schedule=every, on_error="raise")

    def ending() -> bool:
        asked.append(1)
        return on_second() and (told["now"] or len(asked) == told["at"])

    watch.start(model, ending=ending)
    found = [len(watch.step(model, 0))]
    told["now"] = True
    found.append(len(watch.step(model, 1)))
    told["now"], told["at"] = False, len(asked) + 4
    found.append(len(watch.step(model, 2)))
    told["at"] = 0
    return [*found, len(watch.step(model, 2)), len(watch.step(model, 3))]


def spoilt_row() -> dict[str, Any]:
    """The last token of the shortest row has a state that is not finite."""
    model, rows = Model(), probe(40)
    shortest = int(rows.lengths_n.argmin())
    last = int(rows.input_ids_nt[shortest, rows.lengths_n[shortest] - 1])
    model.embed.weight.data[last] = torch.nan
    return measured(40, model, layers="embed")


def budgeted(seconds_first: float, seconds_second: float) -> dict[str, Any]:
    """Steps measured of 40 updates of one second, within a fifth of the time, where each process has a clock by which
    one batch of the probe takes so long.
    """
    now, model = [0.0], Model()

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    model.before = lambda rows: pass_time(seconds_second if on_second() else seconds_first)
    watch = monitor(probe(40), schedule=Schedule(per_decade=0, every=1, budget=0.2), total_steps=40)
    ddp, steps = wrapped(model), []
    clock = mock.patch("time.perf_counter", side_effect=lambda: now[0])
    with clock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.start(ddp)
        for step in range(41):
            pass_time(min(step, 1.0))
            steps += [record.step for record in watch.step(ddp, step)]
        watch.close()
    return {"steps": steps, "warnings": [str(w.message) for w in caught]}


def restarted(folder: Path) -> dict[str, Any]:
    """A run goes on in its file, which the first process alone reads: there RankMe falls."""
    path, model = folder / "run" / "g.jsonl", wrapped(Model())
    watch = monitor(probe(40), path=path)
    for step in range(9):
        watch.measure(model, step)
    state = watch.state_dict()
    watch.close()
    if not on_second():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        falls = [line | ({"rankme": 900.0 * 0.6 ** line["step"]} if "rankme" in line else {}) for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in falls))
    dist.barrier()
    again = monitor(probe(40), path=path)
    again.load_state_dict(state)
    again.start(model, step=8)
    (record,) = again.measure(model, 9)
    again.close()
    dist.barrier()
    files = sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file())
    return {"phase": record.phase, "files": files}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    found: dict[str, Any] = {"world size": dist.get_world_size()}
    found |= {name: measured(n, **how) for name, (n, how) in SAME.items()}
    found |= {name: short_of_memory(*how) for name, how in MEMORY.items()}
    found |= {"failure": fails_and_goes_on(), "stopped": stopped(), "not finite": spoilt_row()}
    found |= {"costly on the first": budgeted(0.2, 0.0), "costly on the second": budgeted(0.0, 0.2)}
    launcher.report(folder, found | {"restart": restarted(folder)})
    launcher.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
