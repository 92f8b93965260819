r"""Reinforcement learning from verifiable rewards with TRL's ``GRPOTrainer``, and how it moves geometry and behaviour.

    accelerate launch recipes/grpo.py --config recipes/configs/grpo_tiny.yaml --model runs/dpo_tiny

rewards right answers to small sums. The YAML file and the command line take this recipe's settings and all of
``trl.GRPOConfig``; unknown ones are refused. Besides the curves the folder then holds rollouts.json (pass@k and the
diversity of many samples before and after) and crossed.jsonl: the geometry of {start, end} weights on the rollouts of
{start, end} weights, so that what the text does and what the weights do are apart.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

from accelerate import PartialState
from datasets import Dataset
from judging.rewards import VERIFIERS, Verifier
from text.data import Row, problem_rows, read_rows, to_pairs, to_problems
from training.arguments import RecipeParser, setting
from training.posttrain import Stage, end_processes, write_whole
from training.stage_settings import StageSettings
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.behaviour import RolloutScore, sample


@dataclasses.dataclass
class RewardSettings(StageSettings):
    """Settings of any stage, and those of problems and rollouts."""

    verifier: Literal["integer", "math_verify"] = setting("integer", "how a completion is judged")
    problems: int = setting(4000, "generated problems to train on")
    test_problems: int = setting(64, "held-out problems on which rollouts are judged")
    ood_terms: int = setting(4, "terms of the out-of-distribution problems; those trained on have two and three")
    samples: int = setting(8, "rollouts a held-out problem along the run")
    ood_problems: str | None = setting(None, "data set of out-of-distribution problems, with --dataset")
    many_samples: int = setting(256, "rollouts a held-out problem at the start and at the end, for pass@k")
    rollout_batch: int = setting(256, "rollouts that are sampled together; other numbers give other samples")
    rollout_rows: int = setting(4, "rollouts a held-out problem in the rollout probe")


def make_parser() -> RecipeParser:
    """Returns the parser of the command line."""
    return RecipeParser(RewardSettings, GRPOConfig, description=__doc__.split("\n")[0])


def main(settings: RewardSettings, args: GRPOConfig) -> None:
    """Optimises the reward, and measures."""
    stage = Stage(settings, args)
    if stage.finished:
        print(f"{stage.folder}: finished already; --overwrite True runs it again")
        return
    tokenizer, model = stage.tokenizer(), stage.model()
    verifier = VERIFIERS[settings.verifier]()
    train, test, ood = problem_sets(stage)
    if settings.verifier == "integer" and not all(row["answer"].lstrip("-").isdecimal() for row in to_problems(train)):
        raise SystemExit("--verifier integer: an answer of the data set is no integer; give --verifier math_verify")
    losses = stage.losses(tokenizer, general := stage.general_probe(tokenizer))
    sets = {"rollouts": test} | ({"rollouts_ood": ood} if ood else {})
    along = {name: score(stage, rows, verifier, tokenizer, settings.samples) for name, rows in sets.items()}
    prompts = [row["prompt"] for row in to_problems(test)]
    probes = {
        "general": general,
        "task": stage.completion_probe(stage.completions(to_pairs(test), tokenizer), tokenizer.eos_token_id),
        "rollouts": rollout_probe(stage, "start", model, tokenizer, prompts),
    }
    many = score(stage, test, verifier, tokenizer, settings.many_samples, extensive=True)
    judge(stage, "start", many, model)
    trainer = GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=verifier.reward,
        train_dataset=Dataset.from_list(to_problems(train)),
        processing_class=tokenizer,
        peft_config=stage.lora(),
        callbacks=stage.callbacks(probes, {**losses, **along}),
    )
    stage.train(trainer)
    trained = stage.trained()
    judge(stage, "end", many, trained)
    cross(stage, trained, tokenizer, prompts, trainer.state.global_step)
    stage.finish(train_rows=len(train))


def problem_sets(stage: Stage) -> tuple[list[Row], list[Row], list[Row]]:
    """Returns problems to train on, held-out ones of the same kind, and longer ones, all in the columns of GSM8K."""
    s = stage.settings
    if s.dataset is not None:
        ood = []
        if s.ood_problems is not None:
            ood = read_rows(s.ood_problems, None, None, stage.split_of(s.ood_problems), s.test_problems)
        return stage.train_rows("", lambda _: []), stage.test_rows(lambda _: [], s.test_problems), ood
    if s.ood_problems is not None or s.test_dataset is not None:
        raise SystemExit("--ood_problems and --test_dataset go with --dataset: without it problems are generated")
    train = problem_rows(s.problems, (2, 3), held_out=False, seed=1)
    test = problem_rows(s.test_problems, (2, 3), held_out=True, seed=2)
    return train, test, problem_rows(s.test_problems, (s.ood_terms,), held_out=True, seed=3)


def score(
    stage: Stage,
    rows: list[Row],
    verifier: Verifier,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    extensive: bool = False,
) -> RolloutScore:
    """Returns what samples rollouts of the problems and judges them; ``extensive`` adds pass@k and self-BLEU."""
    problems = to_problems(rows)
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    return RolloutScore(
        [problem["prompt"] for problem in problems],
        lambda completion, index: float(verifier.right(completion, problems[index]["answer"])),
        tokenizer,
        answer=verifier.read,
        samples=samples,
        max_new_tokens=stage.args.max_completion_length,
        temperature=stage.args.temperature,
        batch_size=stage.settings.rollout_batch,
        ks=ks if extensive else (1,),
        self_bleu_samples=min(8, samples) if extensive and samples > 1 else 0,
    )


def rollout_probe(
    stage: Stage, when: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> ProbeSet:
    """Returns a probe of the model's own rollouts of the held-out prompts, prompts included; sampled once and kept."""
    file = stage.folder / f"{when}_rollouts.safetensors"
    with PartialState().main_process_first():
        if not file.is_file():
            rollouts = sample(
                model,
                tokenizer,
                prompts,
                samples=stage.settings.rollout_rows,
                max_new_tokens=stage.args.max_completion_length,
                temperature=stage.args.temperature,
                batch_size=stage.settings.rollout_batch,
            )
            scratch = file.with_suffix(".part")
            stage.probe_of(rollouts.token_ids).save(scratch)
            scratch.rename(file)
    return ProbeSet.load(file)


def judge(stage: Stage, when: str, many: RolloutScore, model: PreTrainedModel) -> None:
    """Adds what many samples say of the start or of the end to rollouts.json, unless it is there already."""
    file = stage.folder / "rollouts.json"
    with PartialState().main_process_first():
        found = json.loads(file.read_text()) if file.is_file() else {}
        if when not in found:
            write_whole(file, json.dumps({**found, when: many(model)}, indent=1))


def cross(
    stage: Stage, trained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], updates: int
) -> None:
    """Writes crossed.jsonl: {start, end} weights x {start, end} rollouts; update 0 stands for the start weights."""
    start = stage.model()
    probes = {
        "start_rollouts": rollout_probe(stage, "start", start, tokenizer, prompts),
        "end_rollouts": rollout_probe(stage, "end", trained, tokenizer, prompts),
    }
    if PartialState().is_main_process:  # alone: the file must not go once the first process has begun it anew
        (stage.folder / "crossed.jsonl").unlink(missing_ok=True)
    monitor = GeometryMonitor(
        probes, path=stage.folder / "crossed.jsonl", from_scratch=False, **stage.settings.geometry_settings()
    )
    monitor.measure(start, 0)
    monitor.measure(trained, updates)
    monitor.close()


if __name__ == "__main__":
    main(*make_parser().parse())
    end_processes()
