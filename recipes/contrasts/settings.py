"""What a contrast runs and compares: the settings of `contrast.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from training.arguments import setting

#: SFT starts from at least so many checkpoints, as in the paper's overtraining experiment.
FEWEST_CHECKPOINTS = 5


@dataclasses.dataclass
class ContrastSettings:
    """What is run and compared; how each stage trains is in its own configuration."""

    output_dir: str = setting("runs/contrast_tiny", "folder of the contrast; seed-S/ in it holds the runs of seed S")
    preset: Literal["tiny", "small"] = setting("tiny", "configs/{base,sft,dpo,grpo}_PRESET.yaml are used")
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2], metadata={"help": "seeds that are run"})
    jobs: int = setting(1, "stages that run side by side")
    from_base: bool = setting(True, "also run DPO and GRPO straight from the base")
    overtraining: int = setting(6, "checkpoints of the base that SFT starts from; 0: none")
    only_read: bool = setting(False, "run nothing; compare what stands there, and list what is missing")
    real: str | None = setting(None, "folder with sft/, dpo/, grpo/ of an instruction-tuned model: shown, not judged")

    def __post_init__(self) -> None:
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give whole numbers from 0, each once")
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs}: give the number of stages that run side by side, 1 or more")
        if self.overtraining and self.overtraining < FEWEST_CHECKPOINTS:
            raise ValueError(
                f"overtraining={self.overtraining}: give {FEWEST_CHECKPOINTS} checkpoints or more, or 0 to leave it out"
            )
        if self.real is not None and not Path(self.real).is_dir():
            raise ValueError(f"real={self.real!r}: no such folder; give one that holds sft/, dpo/ or grpo/")
