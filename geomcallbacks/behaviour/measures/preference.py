"""Does a model prefer what it was taught to prefer?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_equal_lengths, check_positive, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.measures.loss import logprobs_part, tokens_of
from geomcallbacks.behaviour.rows.completions import Completions

Pair = tuple[Tensor, Tensor]


def preference(
    chosen_n: Tensor,
    rejected_n: Tensor,
    chosen_tokens_n: Tensor,
    rejected_tokens_n: Tensor,
    reference: Pair | None = None,
) -> dict[str, float]:
    """Accuracy and margin of pairs, from the log-probabilities of their completions.

    Args:
        chosen_n: (n,) summed log-probabilities of the chosen completions, in nats.
        rejected_n: (n,) of the rejected ones.
        chosen_tokens_n: (n,) tokens of the chosen completions.
        rejected_tokens_n: (n,) of the rejected ones.
        reference: the same log-probabilities (n,), (n,) of a reference model.

    Returns:
        `accuracy`, the share of pairs whose chosen completion is the more probable (a tie counts a half), and
        `margin`, the mean difference in nats; `accuracy_per_token` and `margin_per_token`, the same of the mean
        log-probability of a token; with a reference `reward_accuracy` and `reward_margin`, the same of DPO's implicit
        reward without its β, ln π(y|x) − ln π_ref(y|x) (Rafailov et al. 2023, arXiv 2305.18290, equation 5). NaN
        where a log-probability is.
    """
    differences = {
        "{}": chosen_n - rejected_n,
        "{}_per_token": chosen_n / chosen_tokens_n - rejected_n / rejected_tokens_n,
    }
    if reference is not None:
        differences["reward_{}"] = (chosen_n - reference[0]) - (rejected_n - reference[1])
    scores = {}
    for name, difference_n in differences.items():
        scores[name.format("accuracy")] = _accuracy(difference_n)
        scores[name.format("margin")] = float(difference_n.mean())
    return scores


class PreferenceScore(Dealt):
    """How a model ranks fixed pairs of completions; see `preference` for the numbers.

    Args:
        chosen: the better completion of each pair.
        rejected: the worse one, to the same prompts in the same order.
        batch_size: rows that go through the model together.
        reference: a reference model, which is run once here and not kept.

    Attributes:
        fingerprint: names what is measured on.
        reference: its log-probabilities (n,), (n,) of chosen and rejected, if one was given.

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or chosen and rejected are no pairs.
    """

    def __init__(
        self,
        chosen: Completions,
        rejected: Completions,
        *,
        batch_size: int = 32,
        reference: nn.Module | None = None,
    ) -> None:
        check_type("chosen", chosen, Completions)
        check_type("rejected", rejected, Completions)
        check_positive(batch_size=batch_size)
        check_equal_lengths(chosen=chosen, rejected=rejected)
        for index, (one, other) in enumerate(zip(chosen.prompt_ids, rejected.prompt_ids, strict=True)):
            if one != other:
                raise ValueError(f"pair {index} has two prompts: give chosen and rejected in the same order")
        self.chosen, self.rejected, self.batch_size = chosen, rejected, batch_size
        self.fingerprint = f"{chosen.fingerprint}-{rejected.fingerprint}"
        self.reference: Pair | None = None
        if reference is not None:
            check_type("reference", reference, nn.Module)
            chosen_n, rejected_n = self.part(reference).chunk(2)
            self.reference = chosen_n, rejected_n

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the pairs do not fit the model."""
        for name, rows in (("chosen completions", self.chosen), ("rejected completions", self.rejected)):
            check_tokens(model, name, rows.max_token_id, rows.max_tokens)

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Log-probabilities (2n,) of the chosen, then of the rejected completions; see `completion_logprobs`."""
        pair = (self.chosen, self.rejected)
        return torch.cat([logprobs_part(model, rows, self.batch_size, index, count) for rows in pair])

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """The scores of `preference`."""
        chosen_n, rejected_n = whole_s.chunk(2)
        return preference(chosen_n, rejected_n, tokens_of(self.chosen), tokens_of(self.rejected), self.reference)


def _accuracy(difference_n: Tensor) -> float:
    if bool(difference_n.isnan().any()):  # whose sign is 0
        return float("nan")
    return float((difference_n.sign().double() + 1).mean() / 2)
