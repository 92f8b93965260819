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
from typing import Any, Literal

from accelerate import PartialState
from judging.rewards import VERIFIERS, Verifier
from text.data import Row, problem_rows, to_pairs, to_problems
from training.arguments import RecipeParser, setting
from training.posttrain import Stage, end_processes
from training.settings import StageSettings
from training.texts import Texts
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.behaviour import RolloutScore, sample
from geomcallbacks.running.processes import first_before_others


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
    """Return the parser of the command line."""
    return RecipeParser(RewardSettings, GRPOConfig, description=__doc__.split("\n")[0])


def main(settings: RewardSettings, args: GRPOConfig) -> None:
    """Optimise the reward, and measure."""
    stage = Stage(settings, args)
    if stage.finished():
        return
    texts, model, verifier = stage.texts, stage.weights.model(), VERIFIERS[settings.verifier]()
    train, test, ood = problem_sets(settings, texts)
    if settings.verifier == "integer" and not all(row["answer"].lstrip("-").isdecimal() for row in to_problems(train)):
        raise SystemExit("--verifier integer: an answer of the data set is no integer; give --verifier math_verify")
    general, rollouts = texts.general_probe(), Rollouts(stage, verifier, test)
    measures = {**texts.losses(general), "rollouts": rollouts.score(test, settings.samples)}
    if ood:
        measures["rollouts_ood"] = rollouts.score(ood, settings.samples)
    probes = {
        "general": general,
        "task": texts.completion_probe(texts.completions(to_pairs(test))),
        "rollouts": rollouts.probe("start", model),
    }
    rollouts.judge("start", model)
    options = stage.trainer_options(to_problems(train), probes, measures)
    trainer = GRPOTrainer(model, reward_funcs=verifier.reward, **options)
    stage.train(trainer)
    trained = stage.weights.load(stage.folder / "model")  # free of the trainer's autocast, as the start weights are
    rollouts.judge("end", trained)
    rollouts.cross(stage.weights.model(), trained, trainer.state.global_step)
    stage.finish(train_rows=len(train))


def problem_sets(settings: RewardSettings, texts: Texts) -> tuple[list[Row], list[Row], list[Row]]:
    """Return problems to train on, held-out ones of the same kind, and longer ones, all in the columns of GSM8K."""
    s = settings
    if s.dataset is not None:
        ood = [] if s.ood_problems is None else texts.read_test(s.ood_problems, s.test_problems)
        return texts.train_rows(""), texts.test_rows(s.test_problems), ood
    if s.ood_problems is not None or s.test_dataset is not None:
        raise SystemExit("--ood_problems and --test_dataset go with --dataset: without it problems are generated")
    train = problem_rows(s.problems, (2, 3), held_out=False, seed=1)
    test = problem_rows(s.test_problems, (2, 3), held_out=True, seed=2)
    return train, test, problem_rows(s.test_problems, (s.ood_terms,), held_out=True, seed=3)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What the start weights and the end weights write for the held-out problems: its worth and its geometry."""

    stage: Stage
    verifier: Verifier
    test: list[Row]

    @property
    def sampling(self) -> dict[str, Any]:
        """How rollouts are drawn: as the training draws them."""
        args, batch_size = self.stage.args, self.stage.settings.rollout_batch
        return dict(max_new_tokens=args.max_completion_length, temperature=args.temperature, batch_size=batch_size)

    def score(self, rows: list[Row], samples: int, extensive: bool = False) -> RolloutScore:
        """Return what samples rollouts of problems and judges them; ``extensive`` adds pass@k and self-BLEU."""
        problems = to_problems(rows)
        ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
        return RolloutScore(
            [problem["prompt"] for problem in problems],
            lambda completion, index: float(self.verifier.right(completion, problems[index]["answer"])),
            self.stage.texts.tokenizer,
            answer=self.verifier.read,
            samples=samples,
            ks=ks if extensive else (1,),
            self_bleu_samples=min(8, samples) if extensive and samples > 1 else 0,
            **self.sampling,
        )

    def judge(self, when: str, model: PreTrainedModel) -> None:
        """Add what many samples say of the start or of the end to rollouts.json, unless it is there already."""
        file = self.stage.folder / "rollouts.json"
        with first_before_others():
            found = json.loads(file.read_text()) if file.is_file() else {}
            if when not in found:
                found[when] = self.score(self.test, self.stage.settings.many_samples, extensive=True)(model)
                self.stage.write(file.name, json.dumps(found, indent=1))

    def probe(self, when: str, model: PreTrainedModel) -> ProbeSet:
        """Return a probe of rollouts of the held-out prompts, prompts included; sampled once and kept."""
        file = self.stage.folder / f"{when}_rollouts.safetensors"
        with first_before_others():
            if not file.is_file():
                prompts = [problem["prompt"] for problem in to_problems(self.test)]
                samples = self.stage.settings.rollout_rows
                found = sample(model, self.stage.texts.tokenizer, prompts, samples=samples, **self.sampling)
                scratch = file.with_suffix(".part")
                self.stage.texts.probe_of(found.token_ids).save(scratch)
                scratch.rename(file)
        return ProbeSet.load(file)

    def cross(self, start: PreTrainedModel, trained: PreTrainedModel, updates: int) -> None:
        """Write crossed.jsonl: {start, end} weights x {start, end} rollouts; update 0 stands for the start weights."""
        probes = {"start_rollouts": self.probe("start", start), "end_rollouts": self.probe("end", trained)}
        file = self.stage.folder / "crossed.jsonl"
        if PartialState().is_main_process:  # alone: the file must not go once the first process has begun it anew
            file.unlink(missing_ok=True)
        read = self.stage.settings.geometry_settings()
        monitor = GeometryMonitor(probes, path=file, from_scratch=False, **read)
        monitor.measure(start, 0)
        monitor.measure(trained, updates)
        monitor.close()


if __name__ == "__main__":
    main(*make_parser().parse())
    end_processes()
