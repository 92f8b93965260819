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
    seeds: str = setting("0,1,2", "seeds, with commas between them")
    jobs: int = setting(1, "stages that run side by side")
    from_base: bool = setting(True, "also run DPO and GRPO straight from the base")
    overtraining: int = setting(6, "checkpoints of the base that SFT starts from; 0: none")
    only_read: bool = setting(False, "run nothing; compare what stands there, and list what is missing")
    real: str | None = setting(None, "folder with sft/, dpo/, grpo/ of an instruction-tuned model: shown, not judged")

    def __post_init__(self) -> None:
        words = [word.strip() for word in self.seeds.split(",")]
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(f"seeds={self.seeds!r}: give whole numbers from 0 with commas between them, such as 0,1,2")
        self.seed_list = [int(word) for word in words]
        if len(set(self.seed_list)) < len(words):
            raise ValueError(f"seeds={self.seeds!r}: give each seed once")
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs}: give the number of stages that run side by side, 1 or more")
        if self.overtraining and self.overtraining < FEWEST_CHECKPOINTS:
            raise ValueError(
                f"overtraining={self.overtraining}: give {FEWEST_CHECKPOINTS} checkpoints or more, or 0 to leave it out"
            )
        if self.real is not None and not Path(self.real).is_dir():
            raise ValueError(f"real={self.real!r}: no such folder; give one that holds sft/, dpo/ or grpo/")
