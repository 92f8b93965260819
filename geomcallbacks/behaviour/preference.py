"""Does a model prefer what it was taught to prefer?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.completions import Completions
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.loss import check_batch_size, check_rows, completion_logprobs

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
        "": chosen_n - rejected_n,
        "_per_token": chosen_n / chosen_tokens_n - rejected_n / rejected_tokens_n,
    }
    scores = {}
    for suffix, difference_n in differences.items():
        scores[f"accuracy{suffix}"] = _accuracy(difference_n)
        scores[f"margin{suffix}"] = float(difference_n.mean())
    if reference is not None:
        reward_n = (chosen_n - reference[0]) - (rejected_n - reference[1])
        scores |= {"reward_accuracy": _accuracy(reward_n), "reward_margin": float(reward_n.mean())}
    return scores


class PreferenceScore:
    """How a model ranks fixed pairs of completions; see `preference` for the numbers.

    Args:
        chosen: the better completion of each pair.
        rejected: the worse one, to the same prompts in the same order.
        batch_size: rows that go through the model together.
        reference: a reference model, which is run once here and not kept, or its log-probabilities (n,) of chosen and
            rejected.

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or chosen and rejected are no pairs.
    """

    def __init__(
        self,
        chosen: Completions,
        rejected: Completions,
        *,
        batch_size: int = 32,
        reference: nn.Module | Pair | None = None,
    ) -> None:
        check_rows("chosen", chosen)
        check_rows("rejected", rejected)
        check_batch_size(batch_size)
        if len(chosen) != len(rejected):
            raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected completions: give one of each a pair")
        for index, (one, other) in enumerate(zip(chosen.prompt_ids, rejected.prompt_ids, strict=True)):
            if one != other:
                raise ValueError(f"pair {index} has two prompts: give chosen and rejected in the same order")
        self.chosen, self.rejected, self.batch_size = chosen, rejected, batch_size
        self.reference = self._reference(reference)

    @property
    def fingerprint(self) -> str:
        """Names what is measured on."""
        return f"{self.chosen.fingerprint}-{self.rejected.fingerprint}"

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the pairs do not fit the model."""
        for name, rows in (("chosen completions", self.chosen), ("rejected completions", self.rejected)):
            check_tokens(model, name, rows.max_token_id, rows.max_tokens)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The scores of `preference`. See `completion_logprobs` for what is raised."""
        chosen_n, chosen_tokens_n = completion_logprobs(model, self.chosen, self.batch_size)
        rejected_n, rejected_tokens_n = completion_logprobs(model, self.rejected, self.batch_size)
        return preference(chosen_n, rejected_n, chosen_tokens_n, rejected_tokens_n, self.reference)

    def _reference(self, reference: nn.Module | Pair | None) -> Pair | None:
        if reference is None:
            return None
        if isinstance(reference, nn.Module):
            return (
                completion_logprobs(reference, self.chosen, self.batch_size)[0],
                completion_logprobs(reference, self.rejected, self.batch_size)[0],
            )
        if not isinstance(reference, tuple) or len(reference) != 2:
            raise TypeError(
                f"reference is a {type(reference).__name__}: give a model, or the log-probabilities (chosen, rejected)"
            )
        chosen_n, rejected_n = (torch.as_tensor(part).detach().to("cpu", torch.float64) for part in reference)
        for part in (chosen_n, rejected_n):
            if tuple(part.shape) != (len(self.chosen),):
                raise ValueError(
                    f"reference holds log-probabilities of shape {tuple(part.shape)}: give one for each of the"
                    f" {len(self.chosen)} pairs"
                )
        return chosen_n, rejected_n


def _accuracy(difference_n: Tensor) -> float:
    if bool(difference_n.isnan().any()):
        return float("nan")
    return float((difference_n.sign().double() + 1).mean() / 2)
