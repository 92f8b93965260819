"""Runs that are killed at a random moment lose no more than the line in hand, and go on without gap or duplicate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import test_hf
import test_lightning
from transformers import TrainerCallback

from geomcallbacks import Schedule, read_records
from geomcallbacks.reading.reader import Reader

HERE = Path(__file__).parent


def killed(kind: str, folder: Path, runs: int, how: str) -> dict[str, Any]:
    """What kill_worker found."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE, HERE.parent / "recipes")))}
    worker = subprocess.run(
        [sys.executable, str(HERE / "kill_worker.py"), kind, str(folder), str(runs), str(runs), how],
        capture_output=True,
        text=True,
        timeout=900,
        env=env,
    )
    assert worker.returncode == 0, worker.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def many(kind: str, runs: int) -> Any:
    return pytest.param(kind, runs, marks=pytest.mark.slow)


@pytest.mark.fault
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize(
    ("kind", "runs"),
    [("loop", 5), ("trainer", 1), ("lightning", 1), many("loop", 100), many("trainer", 15), many("lightning", 15)],
)
def test_killed_runs(tmp_path: Path, kind: str, runs: int, how: str, tally: Callable[..., None]) -> None:
    """Twice each, then left to end: the curve is that of a run which nobody disturbed."""
    found = killed(kind, tmp_path, runs, how)
    kills = survived = 0
    for run in found["runs"]:
        assert run["status"] == 0
        assert run["torn"] <= run["kills"]
        assert all(run["kept"]), "a line that was written is lost"
        whole = found["whole"]
        if how == "SIGTERM" and len(run["curve"]) < len(whole):  # told to end in its last update, it has ended
            whole = whole[:-1]
        assert [step for step, _ in run["curve"]] == [step for step, _ in whole]
        assert [value for _, value in run["curve"]] == pytest.approx([value for _, value in whole], rel=1e-6)
        kills, survived = kills + run["kills"], survived + run["kills"]
    assert kills > 0 or runs == 1  # one run may have ended before it
    tally(f"{how} ({kind})", injected=kills, survived=survived)
    # The process is asked to end, and nothing of ours keeps it: minutes, were there something.
    assert max(run["seconds"] for run in found["runs"]) < 5


class Tells(L.Callback):
    """Sends this process SIGTERM as update `at` begins."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at - 1 and trainer.fit_loop._should_accumulate() is False:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.fault
def test_lightning_measures_nothing_after_sigterm(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Lightning goes on to the end of the batch; the measurement that would be due then is not begun."""
    each = dict(schedule=Schedule(every=1, per_decade=0))
    with pytest.raises(SystemExit):
        test_lightning.fit(tmp_path, [test_lightning.callback(**each), Tells(at=4)], accumulate_grad_batches=1)
    assert test_lightning.steps(tmp_path) == [0, 1, 2, 3]
    tally("SIGTERM before a measurement")


@pytest.mark.fault
def test_lightning_gives_up_a_measurement_at_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Callable[..., None]
) -> None:
    batches: list[int] = []
    read = Reader.read

    def told(self: Reader, batch: Any, positions: Any) -> Any:
        batches.append(len(batches))
        if len(batches) == 8 * 3 + 2 + 1:  # one row to try, then three measurements of eight batches
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, batch, positions)

    monkeypatch.setattr(Reader, "read", told)
    each = dict(schedule=Schedule(every=1, per_decade=0), batch_size=8)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(SystemExit):
        test_lightning.fit(tmp_path, [test_lightning.callback(**each)])
    assert not [w for w in caught if "not measured" in str(w.message)]
    assert test_lightning.steps(tmp_path) == [0, 1, 2]
    assert len(batches) == 8 * 3 + 2 + 1
    tally("SIGTERM in a measurement")


@pytest.mark.fault
def test_trainer_that_saves_at_sigterm_measures_nothing_after_it(tmp_path: Path, tally: Callable[..., None]) -> None:
    """With `enable_jit_checkpoint` Trainer saves and stops; it would call us for the last update then."""

    class Told(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                while not manager.is_checkpoint_requested:
                    time.sleep(0.01)

    each = dict(schedule=Schedule(every=1, per_decade=0))
    made = test_hf.trainer(tmp_path, [test_hf.callback(**each), Told()], enable_jit_checkpoint=True)
    (manager,) = [c.jit_manager for c in made.callback_handler.callbacks if hasattr(c, "jit_manager")]
    manager.kill_wait = 0
    made.train()
    assert made.state.global_step < test_hf.UPDATES
    assert [r["step"] for r in read_records(tmp_path / "geometry.jsonl")] == [0, 1, 2, 3]
    tally("SIGTERM before a measurement")


def test_no_signal_handler_of_ours(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    seen: list[Any] = []

    class Looks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)])

    test_hf.trainer(tmp_path, [test_hf.callback(), Looks()]).train()
    assert seen == [before] * test_hf.UPDATES
