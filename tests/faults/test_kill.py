"""Runs that are killed at a random moment lose no more than the line in hand, and go on without gap or duplicate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import drives
import lightning as L
import pytest
from drives import EACH, SUBJECTS, TrainerHook, fit, make_trainer, steps, watcher
from torch import Tensor, nn
from transformers import TrainerCallback

pytestmark = pytest.mark.fault
HERE = Path(__file__).parent
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FEW, MANY = {"loop": 2, "trainer": 1, "lightning": 1}, {"loop": 100, "trainer": 15, "lightning": 15}


@pytest.fixture(scope="module", params=[FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What kill_worker found of all its runs."""
    folder = tmp_path_factory.mktemp("killed")
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent)))
    worker = subprocess.run(
        [sys.executable, str(HERE / "kill_worker.py"), str(folder), json.dumps(request.param)],
        capture_output=True, text=True, timeout=1800, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert worker.returncode == 0, worker.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("kind", FEW)
def test_killed_runs(found: dict[str, Any], kind: str, how: str) -> None:
    """Once or twice each, then left to end: the curve is that of a run which nobody disturbed."""
    runs = [run for run in found["runs"] if (run["kind"], run["how"]) == (kind, how)]
    for run in runs:
        assert run["status"] == 0
        assert run["kills"] > 0
        assert run["lost"] == []
        whole = found["whole"][kind]
        if how == "SIGTERM" and len(run["curve"]) < len(whole):  # told to end in its last update, it has ended
            whole = whole[:-1]
        assert [step for step, _ in run["curve"]] == [step for step, _ in whole]
        assert [value for _, value in run["curve"]] == pytest.approx([value for _, value in whole], rel=1e-6)
        # The process is asked to end, and nothing of ours keeps it: minutes, were there something.
        assert run["seconds"] < 5


def both(framework: str, folder: Path) -> list[Any]:
    """What measures each update."""
    return [watcher(framework, subject, folder, schedule=EACH) for subject in SUBJECTS]


class Tells(L.Callback):
    """Sends this process SIGTERM in the batch of an update."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_lightning_measures_nothing_after_sigterm(tmp_path: Path) -> None:
    """Lightning goes on to the end of the batch; the measurement that would be due then is not begun."""
    with pytest.raises(SystemExit):
        fit(tmp_path, [*both("lightning", tmp_path), Tells()], accumulate_grad_batches=1)
    for subject in SUBJECTS:
        assert steps(tmp_path / f"{subject}.jsonl") == [0, 1, 2]


def test_lightning_gives_up_a_measurement_at_sigterm(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    batches: list[int] = []

    def forward(backbone: nn.Module, ids: Tensor, mask: Tensor) -> Any:
        batches.append(len(ids))
        if batches.count(8) == 8 * 2 + 3:  # in the third measurement of eight batches
            os.kill(os.getpid(), signal.SIGTERM)
        return backbone(ids, mask)

    settings = dict(schedule=EACH, batch_size=8, **drives.read_by("lightning", forward))
    with pytest.raises(SystemExit):
        fit(tmp_path, [watcher("lightning", "geometry", tmp_path, **settings)])
    assert not [warning for warning in recwarn if "not measured" in str(warning.message)]
    assert steps(tmp_path / "geometry.jsonl") == [0, 1]
    assert batches.count(8) == 8 * 2 + 3


@pytest.mark.parametrize("where", ["on_step_begin", "on_step_end"])
def test_trainer_that_saves_at_sigterm_measures_nothing_after_it(where: str, tmp_path: Path) -> None:
    """With `enable_jit_checkpoint` Trainer saves, forgets that it was told, and stops; it would call us again then."""

    def tell(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 + (where == "on_step_end"):
            os.kill(os.getpid(), signal.SIGTERM)
            while not manager.is_checkpoint_requested:
                time.sleep(0.01)

    told = TrainerCallback()
    setattr(told, where, tell)
    made = make_trainer(tmp_path, [told, *both("trainer", tmp_path)], enable_jit_checkpoint=True)
    (manager,) = [c.jit_manager for c in made.callback_handler.callbacks if hasattr(c, "jit_manager")]
    manager.kill_wait = 0
    made.train()
    assert made.state.global_step < drives.UPDATES
    for subject in SUBJECTS:
        assert steps(tmp_path / f"{subject}.jsonl") == [0, 1, 2]


def test_no_signal_handler_of_ours(tmp_path: Path) -> None:
    seen = []
    before = [signal.getsignal(number) for number in SIGNALS]
    look = TrainerHook(lambda update, model: seen.append([signal.getsignal(number) for number in SIGNALS]))
    make_trainer(tmp_path, [watcher("trainer", "geometry", tmp_path), look]).train()
    assert seen == [before] * drives.UPDATES
