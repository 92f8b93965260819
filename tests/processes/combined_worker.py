"""What test_combinations runs in each of two processes: trainings of which one process has faults."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import launcher
import torch.distributed as dist
from accelerate import PartialState
from combinations_of_faults import check, run

if __name__ == "__main__":
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    PartialState(cpu=True)
    assert dist.get_world_size() == 2
    undisturbed = {"trainer": run("trainer", folder / "undisturbed", watched=False)}
    failed = []
    for seed in range(first, last):
        try:
            check(seed, undisturbed, folder / str(seed), ["trainer"], dist.get_rank(), 2)
        except AssertionError:
            failed.append(traceback.format_exc()[-2000:])
        dist.barrier()  # the first has looked at what was written
    launcher.report(folder, {"failed": failed, "seeds": last - first})
    launcher.leave()
