"""What a model's own completions are worth, and how much they differ."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from torch import nn

from geomcallbacks.behaviour.completions import check_texts, encode_prompts
from geomcallbacks.behaviour.diversity import answer_entropy, check_self_bleu, distinct_answers, distinct_n, self_bleu
from geomcallbacks.behaviour.passk import pass_at_k_curve
from geomcallbacks.behaviour.sampling import Rollouts, check_prompts, check_sampling, sample

_SELF_BLEU_PROMPTS = 16


class RolloutScore:
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

    Raises:
        TypeError, ValueError: an argument is wrong.
        ImportError: `self_bleu_samples` is given and torchmetrics is missing.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        reward: Callable[[str, int], float],
        tokenizer: Any,
        *,
        answer: Callable[[str], Hashable | None],
        samples: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 256,
        ks: Iterable[int] = (1,),
        self_bleu_samples: int = 0,
    ) -> None:
        check_texts("prompts", prompts)
        check_sampling(samples, max_new_tokens, temperature, batch_size)
        for name, function in (("reward", reward), ("answer", answer)):
            if not callable(function):
                raise TypeError(f"{name} is a {type(function).__name__}: give a function of the completion")
        self.ks = tuple(sorted(set(ks)))
        if any(not 1 <= k <= samples for k in self.ks):
            raise ValueError(f"ks={self.ks} must lie within 1 and samples={samples}: draw more, or give smaller k")
        if self_bleu_samples != 0:
            if not 2 <= self_bleu_samples <= samples:
                raise ValueError(
                    f"self_bleu_samples={self_bleu_samples} must be 0 or lie within 2 and samples={samples}"
                )
            check_self_bleu()
        self.prompts, self.reward, self.answer, self._tokenizer = list(prompts), reward, answer, tokenizer
        self._sampling: dict[str, Any] = {
            "samples": samples,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "batch_size": batch_size,
        }
        self.self_bleu_samples = self_bleu_samples

    @property
    def fingerprint(self) -> str:
        """Names the prompts and how completions are sampled from them."""
        return hashlib.sha256(json.dumps([self.prompts, self._sampling]).encode()).hexdigest()[:16]

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the prompts do not fit the model."""
        check_prompts(model, encode_prompts(self.prompts, self._tokenizer), self._sampling["max_new_tokens"])

    def sample(self, model: nn.Module) -> Rollouts:
        """Completions of the prompts; see `sample`."""
        return sample(model, self._tokenizer, self.prompts, **self._sampling)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Sample, and score by `evaluate`."""
        return self.evaluate(self.sample(model))

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
        scores |= {f"pass@{k}": v for k, v in pass_at_k_curve(correct_p, rollouts.samples, self.ks).items()}
        scores["distinct_answers"] = _mean(map(distinct_answers, answer_ps))
        scores["answer_entropy"] = _mean(map(answer_entropy, answer_ps))
        for n in (1, 2):
            shares = [distinct_n(group, n) for group in groups]
            scores[f"distinct_{n}"] = _mean(share for share in shares if not math.isnan(share))
        scores["no_answer"] = _mean(float(answer is None) for answers in answer_ps for answer in answers)
        scores["length"] = _mean(count for counts in rollouts.completion_tokens for count in counts)
        if self.self_bleu_samples:
            kept = [group[: self.self_bleu_samples] for group in groups[:_SELF_BLEU_PROMPTS]]
            scores["self_bleu"] = _mean(map(self_bleu, kept))
        return scores


def _mean(values: Iterable[float]) -> float:
    """NaN where there are none."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan
