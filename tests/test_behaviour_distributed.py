"""Two processes under DDP: the first measures, both end with its numbers or its failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from geomcallbacks import read_records

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave. On busy cores a start hung once in a while as they met: it is begun again."""
    env = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for _ in range(3):
        folder = tmp_path_factory.mktemp("two")
        command = [*launch, str(HERE / "behaviour_worker.py"), str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        run = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
        try:
            said, _ = run.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGTERM)  # torchrun ends its workers
            run.communicate()
            continue
        assert run.returncode == 0, said
        return folder
    pytest.fail("two processes hung three times")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_there_are_two_processes(two):
    assert [found["world"] for found in two] == [2, 2]
    assert [found["wrapped"] for found in two] == ["DistributedDataParallel"] * 2


def test_both_log_what_the_first_measured(two):
    assert [row["step"] for row in two[0]["rows"]] == [0, 2, 4, 6]
    assert two[0]["rows"] == two[1]["rows"]
    assert [row["behaviour/who/rank"] for row in two[1]["rows"]] == [0.1] * 4
    assert len({row["behaviour/loss/loss"] for row in two[1]["rows"]}) == 4


def test_the_first_writes(two, folder):
    records = read_records(folder / "run" / "behaviour.jsonl")
    assert [record["loss/loss"] for record in records] == [row["behaviour/loss/loss"] for row in two[0]["rows"]]
    assert [record["who/missing"] for record in records] == [None] * 4
    assert not (folder / "run" / "behaviour-2.jsonl").exists()


def test_a_failure_is_warned_of_once_and_raised_by_both(two):
    assert [len(found["said"]) for found in two] == [1, 0]
    assert "KeyError" in two[0]["said"][0]
    assert two[0]["raised"] == "KeyError: 'injected'"
    assert "first process failed to measure 'broken'" in two[1]["raised"]
