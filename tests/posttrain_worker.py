"""What test_two_processes runs in each of two processes: DPO and GRPO, whose rewards no model of this size would earn.

accelerate launch ... posttrain_worker.py BASE FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import grpo
import micro
from accelerate import PartialState
from training.posttrain import end_processes

HALF = {"dpo": {"per_device_train_batch_size": 2}, "grpo": {"per_device_train_batch_size": 4}}


def main(base: Path, folder: Path) -> None:
    grpo.VERIFIERS["integer"] = lambda: micro.EVEN_LENGTH
    probe = grpo.Rollouts.probe

    def late(*given: Any) -> Any:
        """The second process may be behind the first by any time."""
        found = probe(*given)
        time.sleep(0.5 * PartialState().process_index)
        return found

    grpo.Rollouts.probe = late
    for recipe, half in HALF.items():
        micro.run(recipe, folder / recipe, base=base, **half)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    end_processes()
