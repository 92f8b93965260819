"""What test_kill runs: training in a child process that is killed at a random moment, and goes on from its checkpoint.

Imports are paid for once: each run is forked from this process, which trains nothing itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from geomcallbacks import GeometryMonitor, ProbeSet, Schedule, read_records
from geomcallbacks.record import record_files

STEPS = 60  # of the plain loop, each measured
UPDATES = 12  # of the frameworks, every second measured
SAVED = 3  # updates between checkpoints

Train = Callable[[Path, Callable[[int], None]], None]


def plain_loop(folder: Path, measured: Callable[[int], None]) -> None:
    """A loop whose weights depend on the update alone, with a checkpoint of every fifth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8))
    start = model[0].weight.detach().clone()
    probe = ProbeSet.from_token_ids(torch.arange(40).reshape(10, 4))
    watch = GeometryMonitor(
        probe,
        layers="0",
        alpha_window=(1, 3),
        path=folder / "geometry.jsonl",
        schedule=Schedule(every=1, per_decade=0),
        total_steps=STEPS,
        on_error="raise",
    )
    kept, begin = folder / "state.json", 0
    if kept.exists():
        watch.load_state_dict(json.loads(kept.read_text()))
        begin = watch.resumed_from
    for step in range(begin, STEPS + 1):
        model[0].weight.data = start**2 * (1 + step)
        watch.step(model, step)
        measured(step)
        if step % 5 == 0:
            scratch = kept.with_suffix(".tmp")
            scratch.write_text(json.dumps(watch.state_dict()))
            scratch.replace(kept)
    watch.close()


def number(path: Path) -> int:
    """The one that a checkpoint is called by."""
    return int(re.findall(r"\d+", path.stem)[0])


def trainer(folder: Path, measured: Callable[[int], None]) -> None:
    import test_hf
    from transformers import Trainer, TrainingArguments

    saving = {"max_steps": UPDATES, "save_strategy": "steps", "save_steps": SAVED, "logging_steps": 1}
    args = TrainingArguments(output_dir=str(folder), **{**test_hf.COMMON, **saving})
    # Not the Pythia of the other tests, whose head Trainer (Transformers 5.23) does not restore from a checkpoint.
    made = Trainer(tiny.model("llama"), args, train_dataset=test_hf.token_dataset(), callbacks=[test_hf.callback()])
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]  # which Trainer writes last
    made.train(resume_from_checkpoint=str(max(whole, key=number)) if whole else None)


def lightning(folder: Path, measured: Callable[[int], None]) -> None:
    import test_lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(folder, every_n_train_steps=SAVED, save_top_k=-1, filename="{step}")
    module = test_lightning.Module()
    module.network = tiny.model()  # without dropout, whose random state Lightning's checkpoints do not keep
    same = TensorDataset(*(rows.repeat(24, 1) for rows in tiny.rows(2)))  # a run goes on at another batch of the epoch
    test_lightning.fit(
        folder,
        [test_lightning.callback(), keep],
        module,
        max(folder.glob("step=*.ckpt"), key=number, default=None),
        DataLoader(same, batch_size=2),
        max_steps=UPDATES,
        accumulate_grad_batches=1,  # resumed amid an accumulation, Lightning 2.6 saves and loses gradients
    )


KINDS: dict[str, Train] = {"loop": plain_loop, "trainer": trainer, "lightning": lightning}


def begin(train: Train, folder: Path) -> tuple[int, int]:
    """Fork a child that trains; its number, and the end of a pipe on which it says what it has measured."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.close(reading)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(folder, lambda step: os.write(writing, f"{step}\n".encode()) and None)
        code = 0
    except SystemExit:  # what Lightning makes of SIGTERM
        code = 128 + signal.SIGTERM
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def said(reading: int) -> list[int]:
    text = b""
    while part := os.read(reading, 65536):
        text += part
    os.close(reading)
    return [int(line) for line in text.split()]


def curve(folder: Path) -> list[list[Any]]:
    """Update and RankMe of the last record file in the folder: a run that was killed before its first checkpoint
    begins another.
    """
    files = record_files(folder)
    return [[r["step"], r["rankme"]] for r in read_records(files[-1])] if files else []


def torn(folder: Path) -> int:
    """Lines of the folder's last record file that are not whole."""
    count = 0
    files = record_files(folder)
    for line in files[-1].read_bytes().split(b"\n") if files else []:
        try:
            json.loads(line or b"{}")
        except ValueError:
            count += 1
    return count


def killed(kind: str, folder: Path, rng: random.Random, length: float, how: signal.Signals) -> dict[str, Any]:
    """One run, killed once or twice, and then left to end."""
    folder.mkdir()
    found: dict[str, Any] = {"kills": 0, "torn": 0, "kept": [], "seconds": 0.0}
    for attempt in range(20):
        child, reading = begin(KINDS[kind], folder)
        if attempt < 2:
            time.sleep(rng.uniform(0, length))
            os.kill(child, how)
        killed_at = time.monotonic()
        _, status = os.waitpid(child, 0)
        if attempt < 2:
            found["seconds"] = max(found["seconds"], time.monotonic() - killed_at)
        acknowledged = said(reading)
        found["torn"] = max(found["torn"], torn(folder))
        steps = [step for step, _ in curve(folder)]
        found["kept"].append(set(acknowledged) <= set(steps))
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 128 + how:
            found["kills"] += 1
            continue
        found |= {"status": os.WEXITSTATUS(status), "curve": curve(folder)}
        return found
    raise RuntimeError("the run never ended")


def main(kind: str, folder: Path, runs: int, seed: int, how: signal.Signals) -> None:
    if kind != "loop":  # paid once, before any fork
        import test_hf  # noqa: F401
        import test_lightning  # noqa: F401
    torch.set_num_threads(1)
    whole = folder / "whole"
    whole.mkdir()
    start = time.monotonic()
    child, reading = begin(KINDS[kind], whole)
    said(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (whole / "log.txt").read_text()
    length, rng = time.monotonic() - start, random.Random(seed)
    found = [killed(kind, folder / str(index), rng, length, how) for index in range(runs)]
    (folder / "found.json").write_text(json.dumps({"whole": curve(whole), "runs": found}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), signal.Signals[sys.argv[5]])
