r"""Runs, or reads where they are finished, all post-training stages over seeds, and judges the paper's statements.

    python recipes/contrast.py --config recipes/configs/contrast_tiny.yaml

pretrains a base for each seed, then SFT, DPO and GRPO in a chain, DPO and GRPO straight from the base, and SFT from
several checkpoints of the base (overtraining). The output folder then holds contrast.md (one table, a verdict for each
statement), contrast.json (every number, by seed) and contrast.png. A stage that is finished is not run again, and one
that was interrupted goes on, so the command can be stopped and given again. To compare what stands there already::

    python recipes/contrast.py --config recipes/configs/contrast_tiny.yaml --only_read True
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from contrasts.compare import compare
from contrasts.figure import draw
from contrasts.read import read_contrast, read_run
from contrasts.run import Runner, StageFailure
from contrasts.settings import ContrastSettings
from contrasts.table import render
from training.arguments import RecipeParser


def make_parser() -> RecipeParser:
    """Return the parser of the command line."""
    return RecipeParser(ContrastSettings, description=__doc__.split("\n")[0])


def main(settings: ContrastSettings, scripts: Path | None = None) -> None:
    """Run what is not finished, compare, and write table, numbers and figure.

    Args:
        settings: what is run and compared.
        scripts: folder of the recipes; default: this file's.

    Raises:
        StageFailure: a stage failed.
        ValueError: runs cannot be compared, or a setting does not fit what stands in the folder.
    """
    folder = Path(settings.output_dir)
    if not settings.only_read:
        runner = Runner(settings, Path(__file__).parent.resolve() if scripts is None else scripts)
        folder.mkdir(parents=True, exist_ok=True)
        runner.run()
    real = None if settings.real is None else read_run(Path(settings.real))
    numbers = compare(read_contrast(settings), settings, real)
    page = render(numbers)
    (folder / "contrast.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False))
    (folder / "contrast.md").write_text(page, encoding="utf-8")
    draw(numbers, folder / "contrast.png")
    print(f"\n{page.split('## Shown')[0]}table    {folder / 'contrast.md'}\nnumbers  {folder / 'contrast.json'}")
    print(f"figure   {folder / 'contrast.png'}")


if __name__ == "__main__":
    try:
        main(make_parser().parse())
    except (StageFailure, ValueError, FileNotFoundError) as error:
        sys.exit(f"contrast.py: error: {error}")
