r"""Runs, or reads where they are finished, all post-training stages over seeds, and judges the paper's statements.

    python recipes/contrast.py --config recipes/configs/contrast_tiny.yaml

pretrains a base for each seed, then SFT, DPO and GRPO in a chain, DPO and GRPO straight from the base, and SFT from
several checkpoints of the base (overtraining). The output folder then holds contrast.md (one table, a verdict for each
statement), contrast.json (every number, by seed) and contrast.png. A stage that is finished is not run again, and one
that was interrupted goes on, so the command can be stopped and given again. To compare what stands there already::

    python recipes/contrast.py --config recipes/configs/contrast_tiny.yaml --only_read True
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

from contrasts.compare import compare
from contrasts.figure import draw
from contrasts.read import read_contrast, read_run
from contrasts.run import Runner, StageFailure
from contrasts.table import render
from contrasts.verdicts import MOST_SEEDS
from training.arguments import RecipeParser, setting

#: SFT starts from at least so many checkpoints, as the paper's overtraining experiment does.
FEWEST_CHECKPOINTS = 5


@dataclasses.dataclass
class ContrastSettings:
    """What is run and compared; how each stage trains is in its own configuration."""

    output_dir: str = setting("runs/contrast_tiny", "folder of the contrast; seed-S/ in it holds the runs of seed S")
    preset: Literal["tiny", "small"] = setting("tiny", "configs/{base,sft,dpo,grpo}_PRESET.yaml are used")
    base_config: str | None = setting(None, "configuration of pretrain.py that replaces base_PRESET.yaml")
    seeds: str = setting("0,1,2", "seeds, with commas between them")
    jobs: int = setting(1, "stages that run side by side")
    launcher: str = setting("python", "python, or words before the script: accelerate launch --num_processes 1")
    from_base: bool = setting(True, "also run DPO and GRPO straight from the base")
    overtraining: int = setting(6, "checkpoints of the base that SFT starts from; 0: none")
    only_read: bool = setting(False, "run nothing; compare what stands there, and list what is missing")
    real: str | None = setting(None, "folder with sft/, dpo/, grpo/ of an instruction-tuned model: shown, not judged")

    def __post_init__(self) -> None:
        self.seed_list = parse_seeds(self.seeds)
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs}: give the number of stages that run side by side, 1 or more")
        if self.overtraining and self.overtraining < FEWEST_CHECKPOINTS:
            raise ValueError(
                f"overtraining={self.overtraining}: give {FEWEST_CHECKPOINTS} checkpoints or more, or 0 to leave it out"
            )
        if self.real is not None and not Path(self.real).is_dir():
            raise ValueError(f"real={self.real!r}: no such folder; give one that holds sft/, dpo/ or grpo/")


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds of a list such as ``0,1,2``.

    Raises:
        ValueError: One is no whole number from 0, or occurs twice, or there are too many.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"seeds={text!r}: give whole numbers from 0 with commas between them, such as 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds) or len(seeds) > MOST_SEEDS:
        raise ValueError(f"seeds={text!r}: give each seed once, and at most {MOST_SEEDS} of them")
    return seeds


def make_parser() -> RecipeParser:
    """Returns the parser of the command line."""
    return RecipeParser(ContrastSettings, description=__doc__.split("\n")[0])


def main(settings: ContrastSettings, scripts: Path | None = None) -> None:
    """Runs what is not finished, compares, and writes table, numbers and figure.

    Args:
        settings: What is run and compared.
        scripts: Folder of the recipes; default: this file's.

    Raises:
        StageFailure: A stage failed.
        ValueError: Runs cannot be compared, or a setting does not fit what stands in the folder.
    """
    folder = Path(settings.output_dir)
    if not settings.only_read:
        runner = Runner(settings, Path(__file__).parent.resolve() if scripts is None else scripts)
        folder.mkdir(parents=True, exist_ok=True)
        runner.run()
    found = read_contrast(folder, settings.seed_list, settings.from_base, settings.overtraining)
    real = None if settings.real is None else read_run(Path(settings.real))
    numbers = compare(found, settings.preset, real)
    table = render(numbers)
    (folder / "contrast.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False))
    (folder / "contrast.md").write_text(table, encoding="utf-8")
    draw(numbers, folder / "contrast.png")
    print(f"\n{table.split('## Shown')[0]}table    {folder / 'contrast.md'}\nnumbers  {folder / 'contrast.json'}")
    print(f"figure   {folder / 'contrast.png'}")


if __name__ == "__main__":
    try:
        main(make_parser().parse())
    except (StageFailure, ValueError, FileNotFoundError) as error:
        sys.exit(f"contrast.py: error: {error}")
