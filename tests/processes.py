"""Starts a worker script in several processes of one group, and gives back what each of them found."""

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
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world_size)]
