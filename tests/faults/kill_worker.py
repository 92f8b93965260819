"""What test_kill runs: training in child processes that are killed at a random moment and go on from their checkpoint.

Imports are paid for once: each run is forked from this process, which trains nothing itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
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


def loop(folder: Path) -> None:
    """A loop whose weights depend on the update alone, with a checkpoint of every fifth. It prints what is measured."""
    model = nn.Sequential(nn.Embedding.from_pretrained(torch.linspace(-1, 1, 400).reshape(50, 8).sin()))
    start = model[0].weight.clone()
    probe = ProbeSet.from_token_ids(torch.arange(40).reshape(10, 4))
    settings = dict(layers="0", alpha_window=(1, 3), schedule=drives.EACH, total_steps=STEPS, on_error="raise")
    watch = GeometryMonitor(probe, path=folder / "geometry.jsonl", **settings)
    kept, begin = folder / "state.json", 0
    if kept.exists():
        state = json.loads(kept.read_text())
        watch.load_state_dict(state)
        begin = state["step"]
    for step in range(begin, STEPS + 1):
        model[0].weight.data = start**2 * (1 + step)
        watch.step(model, step)
        os.write(1, f"measured {step}\n".encode())
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
    watch = drives.watcher("trainer", "geometry", folder)
    made = drives.make_trainer(folder, [watch], model=tiny.model("llama"), **saving)
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]  # which Trainer writes last
    made.train(resume_from_checkpoint=str(max(whole, key=number)) if whole else None)


def lightning(folder: Path) -> None:
    """Without dropout, whose random state Lightning's checkpoints do not keep, on rows that are all the same; and
    without accumulation: resumed amid one, Lightning 2.6 saves and loses gradients.
    """
    module = drives.Module(attention_dropout=0.0, hidden_dropout=0.0)
    data = DataLoader(TensorDataset(*(rows.repeat(24, 1) for rows in tiny.rows(2))), batch_size=2)
    callbacks = [drives.watcher("lightning", "geometry", folder), drives.each_checkpoint(folder, SAVED)]
    begin = max(folder.glob("step=*.ckpt"), key=number, default=None)
    drives.fit(folder, callbacks, module, data, begin, max_steps=UPDATES, accumulate_grad_batches=1)


KINDS: dict[str, Callable[[Path], None]] = {"loop": loop, "trainer": trainer, "lightning": lightning}


def forked(kind: str, folder: Path) -> int:
    """A child that trains; its number."""
    folder.mkdir(exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if child := os.fork():
        os.close(log)
        return child
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        KINDS[kind](folder)
        code = 0
    except SystemExit:  # what Lightning makes of SIGTERM
        code = 128 + signal.SIGTERM
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def curve(folder: Path) -> list[list[Any]]:
    """Update and RankMe of the last record file: a run that is killed before its first checkpoint begins another."""
    return [[row["step"], row["rankme"]] for file in record_files(folder)[-1:] for row in read_records(file)]


def torn(folder: Path) -> int:
    """Lines of the last record file that are not whole."""
    lines = [line for file in record_files(folder)[-1:] for line in file.read_bytes().split(b"\n") if line]
    return sum(not line.endswith(b"}") for line in lines)


def killed(kind: str, folder: Path, rng: random.Random, length: float, how: signal.Signals) -> dict[str, Any]:
    """One run, killed once or twice, and then left to end."""
    found: dict[str, Any] = {"kind": kind, "how": how.name, "kills": 0, "torn": 0, "lost": 0, "seconds": 0.0}
    for attempt in range(20):
        child = forked(kind, folder)
        if attempt < 2:
            time.sleep(rng.uniform(0, length))
            os.kill(child, how)
        begin = time.monotonic()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if attempt < 2:
            found["seconds"] = max(found["seconds"], time.monotonic() - begin)
        found["torn"] = max(found["torn"], torn(folder))
        measured = {int(step) for step in re.findall(r"measured (\d+)", (folder / "log.txt").read_text())}
        found["lost"] += len(measured - {step for step, _ in curve(folder)})
        if status in (-how, 128 + how):
            found["kills"] += 1
        elif found["kills"] == 0 and status == 0:  # it had ended before: another, and sooner
            shutil.rmtree(folder)
            return killed(kind, folder, rng, length / 2, how)
        else:
            return found | {"status": status, "curve": curve(folder)}
    raise RuntimeError("the run never ended")


def main(folder: Path, runs: dict[str, int]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"whole": {}, "runs": []}
    for kind, count in runs.items():
        whole, start = folder / kind, time.monotonic()
        assert os.waitpid(forked(kind, whole), 0)[1] == 0, (whole / "log.txt").read_text()
        length = time.monotonic() - start
        found["whole"][kind] = curve(whole)
        for how in (signal.SIGKILL, signal.SIGTERM):
            rng = random.Random(f"{kind} {how.name}")
            found["runs"] += [
                killed(kind, folder / f"{kind}-{how.name}-{run}", rng, length, how) for run in range(count)
            ]
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
