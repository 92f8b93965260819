r"""Direct preference optimisation with TRL's ``DPOTrainer``, and how it moves geometry and behaviour.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo_tiny.yaml --model runs/sft_tiny

prefers the function as it stands in the standard library to what the start weights write for the same docstring. The
start weights' own replies are sampled first and kept in pairs_train.jsonl and pairs_test.jsonl. The YAML file and the
command line take this recipe's settings and all of ``trl.DPOConfig``; unknown ones are refused.
"""

from __future__ import annotations

import dataclasses
import json

from accelerate import PartialState
from datasets import Dataset
from text.arithmetic import read_answer
from text.data import Row, to_pairs, to_preferences, write_rows
from training.arguments import RecipeParser, setting
from training.posttrain import Stage, end_processes, write_whole
from training.stage_settings import StageSettings
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from geomcallbacks.behaviour import PreferenceScore, sample


@dataclasses.dataclass
class PreferenceSettings(StageSettings):
    """Settings of any stage, and those of the sampled replies."""

    sampled_tokens: int = setting(96, "tokens of a sampled reply; one whose text fills them is not used")
    samples: int = setting(8, "replies sampled for a prompt, of which the one nearest in length to the chosen is used")
    samples_temperature: float = setting(1.0, "temperature of the sampled replies")
    samples_seed: int = setting(0, "seed of the sampled replies")


def make_parser() -> RecipeParser:
    """Returns the parser of the command line."""
    return RecipeParser(PreferenceSettings, DPOConfig, description=__doc__.split("\n")[0])


def main(settings: PreferenceSettings, args: DPOConfig) -> None:
    """Samples the rejected replies where there are none, optimises, and measures."""
    stage = Stage(settings, args)
    if stage.finished:
        print(f"{stage.folder}: finished already; --overwrite True runs it again")
        return
    tokenizer, model = stage.tokenizer(), stage.model()
    train = to_preferences(preference_rows(stage, model, tokenizer, "train"))
    test = to_preferences(preference_rows(stage, model, tokenizer, "test"))
    chosen, rejected = (stage.completions(test, tokenizer, key) for key in ("chosen", "rejected"))
    losses = stage.losses(tokenizer, general := stage.general_probe(tokenizer))
    score = PreferenceScore(chosen, rejected, batch_size=settings.test_batch, reference=model)
    probes = {"general": general, "task": stage.completion_probe(chosen, tokenizer.eos_token_id)}
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
        peft_config=stage.lora(),
        callbacks=stage.callbacks(probes, {**losses, "preference": score}),
    )
    stage.train(trainer)
    stage.finish(train_rows=len(train), test_rows=len(test))


def preference_rows(stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str) -> list[Row]:
    """Returns rows with ``chosen`` and ``rejected``: those of the data set, or replies sampled once and kept."""
    rows = stage.train_rows("preference", write_rows) if part == "train" else stage.test_rows(write_rows)
    if rows and "rejected" in rows[0]:
        return rows
    file = stage.folder / f"pairs_{part}.jsonl"
    with PartialState().main_process_first():
        if not file.is_file():
            found = sample_rejected(stage, model, tokenizer, rows)
            write_whole(file, "".join(json.dumps(row) + "\n" for row in found))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def sample_rejected(
    stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> list[Row]:
    """Adds ``rejected``, the model's own reply; rows all of whose replies have no end are left out.

    Of several replies the one that is nearest in length to the chosen is taken: where the two differ in length, length
    is what is learned. The reply to a problem must be wrong.
    """
    s, pairs = stage.settings, to_pairs(rows)
    rollouts = sample(
        model,
        tokenizer,
        [pair["prompt"] for pair in pairs],
        samples=s.samples,
        max_new_tokens=s.sampled_tokens,
        temperature=s.samples_temperature,
        seed=s.samples_seed,
    )
    found = []
    for pair, replies in zip(pairs, rollouts.completions, strict=True):
        wanted, *lengths = [len(ids) for ids in tokenizer([pair["completion"], *replies])["input_ids"]]
        usable = [
            (abs(length - wanted), index)
            for index, (reply, length) in enumerate(zip(replies, lengths, strict=True))
            if length < s.sampled_tokens and not _as_good(reply, pair["completion"])
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
