"""How a model answers multiple-choice questions: by which option it finds most probable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_positive, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.logprobs import Target, TargetBatch, summed_logprobs, target_batches, targets_of
from geomcallbacks.behaviour.rows.choices import Choices
from geomcallbacks.statistics import wilson


def option_batches(choices: Choices, batch_size: int) -> Iterator[TargetBatch]:
    """The rows and targets that score all options. Sums are the options, counted through all rows.

    Options that differ only in their last token share a row: options of one token need no more than their prompt.
    """
    rows: dict[tuple[int, ...], list[Target]] = {}
    number = count()
    for prompt, options in zip(choices.prompt_ids, choices.option_ids, strict=True):
        for option in options:
            rows.setdefault((*prompt, *option[:-1]), []).extend(targets_of(prompt, option, next(number)))
    return target_batches(rows.items(), batch_size)


def accuracy_of(choices: Choices, score_o: Tensor) -> dict[str, float]:
    """Accuracy of the options' scores.

    Args:
        choices: the questions.
        score_o: (o,) summed log-probability of each option, counted through all rows.

    Returns:
        `accuracy`, where the right option among k that share the highest score counts 1/k, and `low` and `high`, its
        95 % Wilson score interval (Wilson 1927, JASA 22). NaN where a score is.
    """
    if bool(score_o.isnan().any()):
        return dict.fromkeys(("accuracy", "low", "high"), math.nan)
    scores, hits = iter(score_o.tolist()), 0.0
    for options, answer in zip(choices.option_ids, choices.answers, strict=True):
        found = list(islice(scores, len(options)))
        if found[answer] == max(found):
            hits += 1 / found.count(found[answer])
    low, high = wilson(hits / len(choices), len(choices))
    return {"accuracy": hits / len(choices), "low": low, "high": high}


class ChoiceAccuracy(Dealt):
    """How often a model finds the right option the most probable of its row.

    It compares the summed log-probability of each option's tokens, as lm-evaluation-harness' `acc` does.

    Args:
        choices: the questions.
        batch_size: rows that go through the model together.

    Attributes:
        fingerprint: names what is measured on.

    Raises:
        TypeError, ValueError: an argument is wrong by itself.
    """

    def __init__(self, choices: Choices, *, batch_size: int = 32) -> None:
        check_type("choices", choices, Choices)
        check_positive(batch_size=batch_size)
        self.choices, self.batch_size, self.fingerprint = choices, batch_size, choices.fingerprint

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the questions do not fit the model."""
        check_tokens(model, "choices", self.choices.max_token_id, self.choices.max_tokens)

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Log-probability (o,) of each option, counted through all rows.

        Raises:
            ValueError: questions and model do not fit.
        """
        self.check(model)
        batches = option_batches(self.choices, self.batch_size)
        return summed_logprobs(model, batches, sum(map(len, self.choices.option_ids)), index, count)

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """`accuracy`, and `low` and `high`, its 95 % interval; see `accuracy_of`."""
        return accuracy_of(self.choices, whole_s)
