r"""Supervised fine-tuning with TRL's ``SFTTrainer``, and how it moves geometry and behaviour.

    accelerate launch recipes/pretrain.py --config recipes/configs/base_tiny.yaml
    accelerate launch recipes/sft.py --config recipes/configs/sft_tiny.yaml

trains the base to write a function from the first line of its docstring: two CPU cores, a minute, no network. The YAML
file and the command line take this recipe's settings and all of ``trl.SFTConfig``; unknown ones are refused. A hub
model on hub data, or on local files in the same columns::

    accelerate launch recipes/sft.py --config recipes/configs/sft_paper.yaml --output_dir runs/mine
"""

from __future__ import annotations

from text.data import to_pairs
from training.arguments import RecipeParser
from training.posttrain import Stage, end_processes
from training.settings import StageSettings
from trl import SFTConfig, SFTTrainer


def make_parser() -> RecipeParser:
    """Return the parser of the command line."""
    return RecipeParser(StageSettings, SFTConfig, description=__doc__.split("\n")[0])


def main(settings: StageSettings, args: SFTConfig) -> None:
    """Fine-tune on completions alone, and measure."""
    stage = Stage(settings, args)
    if stage.finished():
        return
    texts = stage.texts
    pairs, general = to_pairs(texts.train_rows("sft")), texts.general_probe()
    losses = texts.losses(general)
    probes = {"general": general, "task": texts.completion_probe(losses["id"].rows)}
    stage.train(SFTTrainer(stage.weights.model(), **stage.trainer_options(pairs, probes, losses)))
    stage.finish(train_rows=len(pairs))


if __name__ == "__main__":
    main(*make_parser().parse())
    end_processes()
