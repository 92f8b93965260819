"""Starts scripts in several processes of one group, by themselves or by `accelerate launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run_together(script: str, world_size: int, folder: Path, timeout: float) -> list[dict[str, Any]]:
    """Run `script RANK WORLD_SIZE FOLDER` for each rank; what each wrote to `FOLDER/rank-N.json`.

    The test fails where a process ends with an error, or where they have not ended after `timeout` seconds.
    """
    env = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(HERE / script), str(rank), str(world_size), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for rank in range(world_size)
    ]
    said, deadline = [], time.monotonic() + timeout
    try:
        for worker in workers:
            said.append(worker.communicate(timeout=max(1.0, deadline - time.monotonic()))[0])
    except subprocess.TimeoutExpired:
        pytest.fail(f"{world_size} processes hung for {timeout:g} s")
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
    assert [worker.returncode for worker in workers] == [0] * world_size, "\n".join(said)
    return found_by(folder, world_size)


def launch(*arguments: str, timeout: float) -> str:
    """Run `accelerate launch ARGUMENTS` in two processes of a CPU; what they said.

    The test fails where a process ends with an error, or where they have not ended after `timeout` seconds.
    """
    own = ("ACCELERATE_", "FSDP_", "WANDB_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    root = HERE.parent
    env |= {"PYTHONPATH": f"{root}:{root / 'recipes'}:{HERE}", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    two = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *two, *arguments],
        cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the launcher and both that it started
        pytest.fail(f"two processes hung for {timeout:g} s:\n{process.communicate()[0][-3000:]}")
    assert process.returncode == 0, said[-5000:]
    return said


def found_by(folder: Path, world_size: int = 2) -> list[dict[str, Any]]:
    """What each process wrote to `FOLDER/rank-N.json`."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]
