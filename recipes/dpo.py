r"""Direct preference optimisation with TRL's ``DPOTrainer``, and how it moves geometry and behaviour.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo_tiny.yaml --model runs/sft_tiny

prefers the function as it stands in the standard library to what the start weights write for the same docstring. The
start weights' own replies are sampled first and kept in pairs_train.jsonl and pairs_test.jsonl. The YAML file and the
command line take this recipe's settings and all of ``trl.DPOConfig``; unknown ones are refused.
"""

from __future__ import annotations

import dataclasses
import json

from text.arithmetic import read_answer
from text.data import Row, to_pairs, to_preferences
from training.arguments import RecipeParser, setting
from training.posttrain import Stage, end_processes
from training.settings import StageSettings
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from geomcallbacks.behaviour import PreferenceScore, sample
from geomcallbacks.running.processes import first_before_others


@dataclasses.dataclass
class PreferenceSettings(StageSettings):
    """Settings of any stage, and those of the sampled replies."""

    sampled_tokens: int = setting(96, "tokens of a sampled reply; one whose text fills them is not used")
    samples: int = setting(8, "replies sampled for a prompt, of which the one nearest in length to the chosen is used")
    samples_temperature: float = setting(1.0, "temperature of the sampled replies")
    samples_seed: int = setting(0, "seed of the sampled replies")


def make_parser() -> RecipeParser:
    """Return the parser of the command line."""
    return RecipeParser(PreferenceSettings, DPOConfig, description=__doc__.split("\n")[0])


def main(settings: PreferenceSettings, args: DPOConfig) -> None:
    """Sample the rejected replies where there are none, optimise, and measure."""
    stage = Stage(settings, args)
    if stage.finished():
        return
    texts, model = stage.texts, stage.weights.model()
    train = preferences(stage, "train", texts.train_rows("preference"), model)
    test = preferences(stage, "test", texts.test_rows(), model)
    chosen, rejected = texts.completions(test, "chosen"), texts.completions(test, "rejected")
    general = texts.general_probe()
    preference = PreferenceScore(chosen, rejected, batch_size=settings.test_batch, reference=model)
    measures = {**texts.losses(general), "preference": preference}
    probes = {"general": general, "task": texts.completion_probe(chosen)}
    stage.train(DPOTrainer(model, **stage.trainer_options(train, probes, measures)))
    stage.finish(train_rows=len(train), test_rows=len(test))


def preferences(stage: Stage, part: str, rows: list[Row], model: PreTrainedModel) -> list[Row]:
    """Return prompts with ``chosen`` and ``rejected``: as the rows hold them, or with replies sampled once and kept."""
    if rows and "rejected" not in rows[0]:
        file = stage.folder / f"pairs_{part}.jsonl"
        with first_before_others():
            if not file.is_file():
                found = sample_rejected(stage, to_pairs(rows), model)
                stage.write(file.name, "".join(json.dumps(row) + "\n" for row in found))
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return to_preferences(rows)


def sample_rejected(stage: Stage, pairs: list[Row], model: PreTrainedModel) -> list[Row]:
    """Add ``rejected``, the model's own reply; pairs all of whose replies have no end are left out.

    Of several replies the one that is nearest in length to the chosen is taken: where the two differ in length, length
    is what is learned. The reply to a problem must be wrong.
    """
    settings, tokenizer = stage.settings, stage.texts.tokenizer
    prompts = [pair["prompt"] for pair in pairs]
    drawn = dict(samples=settings.samples, temperature=settings.samples_temperature, seed=settings.samples_seed)
    rollouts = sample(model, tokenizer, prompts, max_new_tokens=settings.sampled_tokens, **drawn)
    found = []
    for pair, replies in zip(pairs, rollouts.completions, strict=True):
        wanted, *lengths = [len(ids) for ids in tokenizer([pair["completion"], *replies])["input_ids"]]
        usable = [
            (abs(length - wanted), index)
            for index, (reply, length) in enumerate(zip(replies, lengths, strict=True))
            if length < settings.sampled_tokens and not _as_good(reply, pair["completion"])
        ]
        if usable:
            rejected = replies[min(usable)[1]]
            found.append({"prompt": pair["prompt"], "chosen": pair["completion"], "rejected": rejected})
    return found


def _as_good(reply: str, chosen: str) -> bool:
    right = read_answer(chosen)
    return reply == chosen or (right is not None and read_answer(reply) == right)


if __name__ == "__main__":
    main(*make_parser().parse())
    end_processes()
