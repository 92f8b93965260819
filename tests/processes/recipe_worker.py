"""What test_recipes runs in each of two processes: DPO and GRPO, then SFT as a user does, who runs the script."""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any

import grpo
import launcher
import micro
import torch.distributed as dist


def main(folder: Path, base: Path) -> None:
    grpo.VERIFIERS["integer"] = lambda: micro.EVEN_LENGTH  # a policy of this size would earn no reward
    probe = grpo.Rollouts.probe

    def late(*given: Any) -> Any:
        """The second process may be behind the first by any time."""
        found = probe(*given)
        time.sleep(0.5 * dist.get_rank())
        return found

    grpo.Rollouts.probe = late
    micro.run("dpo", folder / "dpo", base=base, per_device_train_batch_size=2)
    micro.run("grpo", folder / "grpo", base=base, per_device_train_batch_size=4)
    launcher.report(folder, {"world size": dist.get_world_size()})
    sys.argv = ["sft.py", *micro.arguments("sft", folder / "sft", base=base, per_device_train_batch_size=2)]
    runpy.run_path("recipes/sft.py", run_name="__main__")
    assert not dist.is_initialized(), "the script has left its process group behind"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
