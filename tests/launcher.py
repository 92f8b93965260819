"""Starts a worker in several processes of one group, on the CPU, by `accelerate launch`."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

TESTS = Path(__file__).parent
ROOT = TESTS.parent
OF_A_LAUNCH = ("ACCELERATE_", "FSDP_", "WANDB_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")


def launch(
    worker: str, folder: Path, *arguments: object, processes: int = 2, config: str = "ddp", timeout: float = 200.0
) -> list[dict[str, Any]]:
    """Run `tests/processes/WORKER FOLDER ARGUMENTS` in each process, under a file of recipes/accelerate.

    What the processes print goes to `FOLDER/output.txt`.

    Returns:
        What each rank has given to `report`.

    Raises:
        AssertionError: a process ended with an error, or they have not ended after `timeout` seconds.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(OF_A_LAUNCH)}
    paths = [str(ROOT), str(ROOT / "recipes"), str(TESTS), *filter(None, [env.get("PYTHONPATH")])]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # where DeepSpeed looks for its ninja
    env |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{config}.yaml"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--main_process_port", "0"]
    command += [f"tests/processes/{worker}", str(folder), *map(str, arguments)]
    output = folder / "output.txt"
    with output.open("w") as file:
        launcher = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = launcher.wait(timeout)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # it ends its workers
            code = f"they hung for {timeout:g} s, ended with {launcher.wait(60)}"
    assert code == 0, f"{worker} in {processes} processes: {code}\n{output.read_text()[-5000:]}"
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]


def report(folder: Path, found: dict[str, Any]) -> None:
    """Hand to the test what this process has found. Called by the worker."""
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))


def leave() -> None:
    """End the process group once all have come here: at exit, a thread that still waits would abort its process."""
    dist.barrier()
    gc.collect()  # models in circles still hold the group, whose threads would outlive it
    dist.destroy_process_group()
