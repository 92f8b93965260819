"""What test_kill runs: training in child processes that are killed at a random moment and go on from their checkpoint.

Imports are paid for once: each run is forked from this process, which trains nothing itself.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import shutil
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import drives
import tiny
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from geomcallbacks import GeometryMonitor, ProbeSet, read_records
from geomcallbacks.record import record_files

STEPS = 60  # of the plain loop
UPDATES, SAVED = 9, 2  # of the frameworks; updates between checkpoints
TOLD = 128 + signal.SIGTERM  # exit status of a process that has ended because it was told to


def loop(folder: Path) -> None:
    """A loop whose weights depend on the update alone, with a checkpoint of every fifth. It prints what is measured."""
    start = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding.from_pretrained(start))
    probe = ProbeSet.from_token_ids(torch.arange(40).reshape(10, 4))
    settings = dict(layers="0", alpha_window=(1, 3), schedule=drives.EACH, total_steps=STEPS, on_error="raise")
    watch = GeometryMonitor(probe, path=folder / "geometry.jsonl", **settings)
    kept, begin = folder / "state.json", 0
    if kept.exists():
        state = json.loads(kept.read_text())
        watch.load_state_dict(state)
        begin = state["step"]
    for step in range(begin, STEPS + 1):
        model[0].weight.data = (start * (1 + step / 10)).sin()
        watch.step(model, step)
        print(f"measured {step}", flush=True)
        if step % 5 == 0:
            scratch = kept.with_suffix(".tmp")
            scratch.write_text(json.dumps(watch.state_dict()))
            scratch.replace(kept)
    watch.close()


def number(path: Path) -> int:
    """The update that a checkpoint is called by."""
    return int(re.findall(r"\d+", path.stem)[0])


def trainer(folder: Path) -> None:
    saving = {"max_steps": UPDATES, "save_strategy": "steps", "save_steps": SAVED}
    # Not the Pythia of the other tests, whose head Trainer (Transformers 5.23) does not restore from a checkpoint.
    made = drives.make_trainer(folder, [drives.watcher("trainer", "geometry", folder)], tiny.model("llama"), **saving)
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]  # which Trainer writes last
    drives.trained(made, max(whole, key=number, default=None))


def lightning(folder: Path) -> None:
    """Without dropout, whose random state Lightning's checkpoints do not keep, on rows that are all the same; and
    without accumulation: resumed amid one, Lightning 2.6 saves and loses gradients.
    """
    module = drives.Module(attention_dropout=0.0, hidden_dropout=0.0)
    data = DataLoader(TensorDataset(*(rows.repeat(24, 1) for rows in tiny.rows(2))), batch_size=2)
    callbacks = [drives.watcher("lightning", "geometry", folder), drives.each_checkpoint(folder, SAVED)]
    begin = max(folder.glob("step=*.ckpt"), key=number, default=None)
    drives.fit(folder, callbacks, module, data, begin, max_steps=UPDATES, accumulate_grad_batches=1)


KINDS = {"loop": loop, "trainer": trainer, "lightning": lightning}


def run(kind: str, folder: Path) -> None:
    with (folder / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            KINDS[kind](folder)
        except SystemExit:  # what Lightning makes of SIGTERM
            sys.exit(TOLD)


def begun(kind: str, folder: Path) -> Any:
    """A child that trains."""
    folder.mkdir(exist_ok=True)
    child = multiprocessing.get_context("fork").Process(target=run, args=(kind, folder))
    child.start()
    return child


def curve(folder: Path) -> list[list[Any]]:
    """Update and RankMe of the last record file: a run that is killed before its first checkpoint begins another."""
    return [[row["step"], row["rankme"]] for file in record_files(folder)[-1:] for row in read_records(file)]


def killed(kind: str, folder: Path, length: float, how: signal.Signals, seed: int) -> dict[str, Any]:
    """One run, killed once or twice, and then left to end."""
    rng, kills, lost, seconds = random.Random(f"{kind} {how} {seed}"), 0, [], 0.0
    while True:
        child = begun(kind, folder)
        if kills < 2:
            child.join(rng.uniform(0, length))
            child.kill() if how == signal.SIGKILL else child.terminate()
        begin = time.monotonic()
        child.join()
        if child.exitcode in (-how, TOLD):
            kills, seconds = kills + 1, max(seconds, time.monotonic() - begin)
            log = folder / "log.txt"
            measured = re.findall(r"measured (\d+)\n", log.read_text() if log.exists() else "")
            lost += set(map(int, measured)) - {step for step, _ in curve(folder)}
        elif kills or child.exitcode:
            found = {"kills": kills, "lost": lost, "seconds": seconds, "status": child.exitcode}
            return {"kind": kind, "how": how.name, "curve": curve(folder), **found}
        else:  # it had ended before: another run, killed sooner
            length /= 2
            shutil.rmtree(folder)


def main(folder: Path, runs: dict[str, int]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"whole": {}, "runs": []}
    for kind, count in runs.items():
        whole, start = folder / kind, time.monotonic()
        begun(kind, whole).join()
        length = time.monotonic() - start
        found["whole"][kind] = curve(whole)
        for how in (signal.SIGKILL, signal.SIGTERM):
            found["runs"] += [killed(kind, folder / f"{kind}-{how}-{n}", length, how, n) for n in range(count)]
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
