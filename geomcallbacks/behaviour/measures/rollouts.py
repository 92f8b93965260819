"""What a model's own completions are worth, and how much they differ."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_texts, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.rows.token_ids import encode_prompts
from geomcallbacks.behaviour.sampling import diversity
from geomcallbacks.behaviour.sampling.draw import (
    Rollouts,
    check_prompts,
    check_sampling,
    drawn_tokens,
    repeated_prompts,
    rollouts_of,
    sample,
)
from geomcallbacks.behaviour.sampling.passk import pass_at_k_curve

_SELF_BLEU_PROMPTS = 16


@dataclass(eq=False)
class RolloutScore(Dealt):
    """Samples completions of fixed prompts and scores them.

    | key | of the completions |
    |---|---|
    | `reward` | mean reward |
    | `pass@k` | for each k: unbiased, a completion being correct where its reward is at least 1; see `pass_at_k` |
    | `distinct_answers`, `answer_entropy` | of each prompt's answers, mean over prompts; the latter in nats |
    | `distinct_1`, `distinct_2` | of each prompt's completions, mean over the prompts that have n-grams |
    | `no_answer` | share from which no answer could be read |
    | `length` | mean tokens, EOS not counted |
    | `self_bleu` | mean over the first 16 prompts, of the first `self_bleu_samples` completions of each |

    Args:
        prompts: texts.
        reward: (completion, index of its prompt) -> reward.
        tokenizer: the model's tokenizer; it is not changed.
        answer: completion -> its answer, or None where it has none.
        samples: completions of each prompt.
        max_new_tokens: most tokens of a completion.
        temperature, seed, batch_size: those of `sample`.
        ks: the k of pass@k, each at most `samples`.
        self_bleu_samples: completions a prompt for `self_bleu`, whose cost grows with their square; 0 leaves it out.

    Attributes:
        fingerprint: names the prompts and how completions are sampled from them.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ImportError: `self_bleu_samples` is given and torchmetrics is missing.
    """

    prompts: Sequence[str]
    reward: Callable[[str, int], float]
    tokenizer: Any
    _: KW_ONLY
    answer: Callable[[str], Hashable | None]
    samples: int
    max_new_tokens: int
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 256
    ks: Iterable[int] = (1,)
    self_bleu_samples: int = 0

    def __post_init__(self) -> None:
        check_texts("prompts", self.prompts)
        check_sampling(self.samples, self.max_new_tokens, self.temperature, self.batch_size)
        check_type("reward", self.reward, Callable)
        check_type("answer", self.answer, Callable)
        self.prompts, self.ks = list(self.prompts), tuple(sorted(set(self.ks)))
        if any(not 1 <= k <= self.samples for k in self.ks):
            raise ValueError(f"ks={self.ks} must lie within 1 and samples={self.samples}: draw more, or give smaller k")
        if self.self_bleu_samples != 0:
            if not 2 <= (number := self.self_bleu_samples) <= self.samples:
                raise ValueError(f"self_bleu_samples={number} must be 0 or lie within 2 and samples={self.samples}")
            diversity.import_bleu()  # refuses before the first update where it is missing
        names = ("samples", "max_new_tokens", "temperature", "seed", "batch_size")
        self._sampling: dict[str, Any] = {name: getattr(self, name) for name in names}
        self.fingerprint = hashlib.sha256(json.dumps([self.prompts, self._sampling]).encode()).hexdigest()[:16]

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the prompts do not fit the model."""
        check_prompts(model, encode_prompts(self.prompts, self.tokenizer), self.max_new_tokens)

    def sample(self, model: nn.Module) -> Rollouts:
        """Completions of the prompts; see `sample`."""
        return sample(model, self.tokenizer, self.prompts, **self._sampling)

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Sample; the completions' tokens, each number one higher: 0 stands where a completion has ended."""
        how = {name: value for name, value in self._sampling.items() if name != "samples"}
        prompt_ids = repeated_prompts(self.prompts, self.tokenizer, self.samples)
        drawn = drawn_tokens(model, self.tokenizer, prompt_ids, **how, index=index, count=count)
        token_rt = torch.zeros(len(drawn), self.max_new_tokens, dtype=torch.int64, device="cpu")
        for row, tokens in enumerate(drawn):
            token_rt[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64, device="cpu") + 1
        return token_rt.flatten()

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """Score by `evaluate` what all parts have sampled."""
        prompt_ids = repeated_prompts(self.prompts, self.tokenizer, self.samples)
        drawn = [[token - 1 for token in row if token > 0] for row in whole_s.view(len(prompt_ids), -1).tolist()]
        return self.evaluate(rollouts_of(self.prompts, self.samples, prompt_ids, drawn, self.tokenizer))

    def evaluate(self, rollouts: Rollouts) -> dict[str, float]:
        """The scores of given completions of the prompts.

        Raises:
            ValueError: these are completions of other prompts, or too few for the largest k.
        """
        if rollouts.prompts != self.prompts:
            raise ValueError("the rollouts are of other prompts than this score's: sample them with its own `sample`")
        groups = rollouts.completions
        reward_ps = [[float(self.reward(text, p)) for text in group] for p, group in enumerate(groups)]
        answer_ps = [[self.answer(text) for text in group] for group in groups]
        correct_p = [sum(reward >= 1 for reward in rewards) for rewards in reward_ps]
        scores = {"reward": _mean(reward for rewards in reward_ps for reward in rewards)}
        scores |= {f"pass@{k}": v for k, v in pass_at_k_curve(correct_p, len(groups[0]), self.ks).items()}
        scores["distinct_answers"] = _mean(map(diversity.distinct_answers, answer_ps))
        scores["answer_entropy"] = _mean(map(diversity.answer_entropy, answer_ps))
        for n in (1, 2):
            shares = [diversity.distinct_n(group, n) for group in groups]
            scores[f"distinct_{n}"] = _mean(share for share in shares if not math.isnan(share))
        scores["no_answer"] = _mean(float(answer is None) for answers in answer_ps for answer in answers)
        scores["length"] = _mean(count for counts in rollouts.completion_tokens for count in counts)
        if self.self_bleu_samples:
            kept = [group[: self.self_bleu_samples] for group in groups[:_SELF_BLEU_PROMPTS]]
            scores["self_bleu"] = _mean(map(diversity.self_bleu, kept))
        return scores


def _mean(values: Iterable[float]) -> float:
    """The mean, NaN of no values."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan
