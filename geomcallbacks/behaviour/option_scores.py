"""How a model answers multiple-choice questions: by which option it finds most probable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.choices import Choices
from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.behaviour.loss import check_batch_size
from geomcallbacks.reading.device import device_of
from geomcallbacks.statistics import wilson


@dataclass(frozen=True)
class OptionBatch:
    """Token rows that go through the model together, and the option tokens that they predict.

    Attributes:
        input_ids_bt: (b, t) a prompt and an option without its last token, right-padded with 0.
        mask_bt: (b, t) 1 for real tokens, 0 for padding.
        row_m: (m,) of each predicted token: its row in the batch,
        position_m: (m,) the position that predicts it,
        target_m: (m,) its id,
        option_m: (m,) and its option, counted through all rows of the choices.
    """

    input_ids_bt: Tensor
    mask_bt: Tensor
    row_m: Tensor
    position_m: Tensor
    target_m: Tensor
    option_m: Tensor


def option_batches(choices: Choices, batch_size: int, device: torch.device) -> Iterator[OptionBatch]:
    """Everything that scoring all options needs, sorted by length.

    Options that differ only in their last token share a row: options of one token need no more than their prompt.
    """
    predicted: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}  # row -> (position, target, option)
    option = 0
    for prompt, options in zip(choices.prompt_ids, choices.option_ids, strict=True):
        for tokens in options:
            found = predicted.setdefault((*prompt, *tokens[:-1]), [])
            found += [(len(prompt) - 1 + place, token, option) for place, token in enumerate(tokens)]
            option += 1
    rows = sorted(predicted, key=len)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        length_b = torch.tensor([len(row) for row in batch])
        ids_bt = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True)
        mask_bt = (torch.arange(ids_bt.shape[1]) < length_b[:, None]).long()
        places = [(place, *token) for place, row in enumerate(batch) for token in predicted[row]]
        row_m, position_m, target_m, option_m = torch.tensor(places).T.contiguous().to(device)
        yield OptionBatch(ids_bt.to(device), mask_bt.to(device), row_m, position_m, target_m, option_m)


def logprobs(logits_mv: Tensor, batch: OptionBatch) -> Tensor:
    """Log-probability (m,) of each predicted token, in nats: on the CPU, float64 of a float32 log-softmax."""
    logprob_mv = torch.log_softmax(logits_mv.float(), dim=-1)
    return logprob_mv.gather(1, batch.target_m[:, None])[:, 0].cpu().double()


def model_logits(language_model: Any, batch: OptionBatch) -> Tensor:
    """The model's own logits (m, v) where it predicts the tokens of a batch."""
    first, length = int(batch.position_m.min()), batch.input_ids_bt.shape[1]
    settings: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(language_model).forward).parameters:
        settings["logits_to_keep"] = length - first
    logits_btv: Tensor = language_model(input_ids=batch.input_ids_bt, attention_mask=batch.mask_bt, **settings).logits
    return logits_btv[:, first - length :][batch.row_m, batch.position_m - first]


def accuracy_of(choices: Choices, score_o: Tensor, normalise: str = "none") -> dict[str, float]:
    """Accuracy of the options' scores.

    Args:
        choices: the questions.
        score_o: (o,) summed log-probability of each option, counted through all rows.
        normalise: "tokens" divides it by the option's tokens; "none" does not.

    Returns:
        `accuracy`, where the right option among k that share the highest score counts 1/k, and `low` and `high`, its
        95 % Wilson score interval (Wilson 1927, JASA 22). NaN where a score is.
    """
    scores, hits, at = score_o.tolist(), 0.0, 0
    if any(math.isnan(score) for score in scores):
        return dict.fromkeys(("accuracy", "low", "high"), math.nan)
    for options, answer in zip(choices.option_ids, choices.answers, strict=True):
        found = scores[at : at + len(options)]
        if normalise == "tokens":
            found = [score / len(option) for score, option in zip(found, options, strict=True)]
        at += len(options)
        if found[answer] == max(found):
            hits += 1 / found.count(found[answer])
    low, high = wilson(hits / len(choices), len(choices))
    return {"accuracy": hits / len(choices), "low": low, "high": high}


def check_choices(choices: Any, batch_size: int, normalise: str) -> None:
    """Raise where an argument is wrong by itself."""
    if not isinstance(choices, Choices):
        raise TypeError(f"choices is a {type(choices).__name__}: build it with Choices(…) or Choices.from_sciq")
    check_batch_size(batch_size)
    if normalise not in ("none", "tokens"):
        raise ValueError(f"normalise={normalise!r} is unknown: give 'none' or 'tokens'")


class ChoiceAccuracy:
    """How often a model finds the right option the most probable of its row.

    Args:
        choices: the questions.
        batch_size: rows that go through the model together.
        normalise: "none" compares the summed log-probability of an option's tokens, as lm-evaluation-harness' `acc`
            does; "tokens" their mean, for options of several lengths.

    Raises:
        TypeError, ValueError: an argument is wrong by itself.
    """

    def __init__(self, choices: Choices, *, batch_size: int = 32, normalise: str = "none") -> None:
        check_choices(choices, batch_size, normalise)
        self.choices, self.batch_size, self.normalise = choices, batch_size, normalise

    @property
    def fingerprint(self) -> str:
        """Names what is measured on."""
        return self.choices.fingerprint

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the questions do not fit the model."""
        check_tokens(model, "choices", self.choices.max_token_id, self.choices.max_tokens)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`accuracy`, and `low` and `high`, its 95 % interval; see `accuracy_of`.

        Raises:
            ValueError: questions and model do not fit.
        """
        self.check(model)
        score_o = torch.zeros(sum(map(len, self.choices.option_ids)), dtype=torch.float64)
        with evaluating(model) as language_model:
            for batch in option_batches(self.choices, self.batch_size, device_of(language_model)):
                logprob_m = logprobs(model_logits(language_model, batch), batch)
                score_o.index_add_(0, batch.option_m.cpu(), logprob_m)
        return accuracy_of(self.choices, score_o, self.normalise)
