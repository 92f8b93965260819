"""Spectral intervention: which directions of the last hidden state a model answers questions with.

Li et al. 2025 (arXiv 2509.23024, table 8) keep, or remove, the leading eigendirections of the representation and score
SciQ again. They leave open at which layer, on what data the covariance is estimated, and where the mean goes; here the
layer is the backbone's output (what the head reads), the data are a probe's, and the mean is an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.choices import Choices
from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.behaviour.option_scores import (
    OptionBatch,
    accuracy_of,
    check_choices,
    logprobs,
    model_logits,
    option_batches,
)
from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.positions import Positions, check_positions, position_count
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.locate import backbone_of
from geomcallbacks.reading.reader import Reader
from geomcallbacks.spectra.moments import Moments

KINDS = ("keep_top", "remove_top", "keep_bottom", "remove_bottom", "keep_random", "remove_random")
MEANS = ("keep", "remove", "project")


@dataclass(frozen=True)
class Directions:
    """Where the hidden states of a probe lie.

    Attributes:
        mean_d: (d,) float64, their mean.
        eigenvalues_d: (d,) descending, of their centred covariance, normalised by n − 1.
        vectors_dd: (d, d) float64, the eigenvectors in its columns, in the same order.
    """

    mean_d: Tensor
    eigenvalues_d: Tensor
    vectors_dd: Tensor


class SpectralIntervention:
    """Multiple choice with the last hidden state projected on some of its eigendirections.

    The covariance is that of the geometry's last layer: the features of `probe` at `positions`, centred, in float64.
    Each hidden state h that predicts a token of an option is replaced by its projection, P = V Vᵀ with the kept
    eigenvectors in V, and the head is run on the result. Of the `kinds`, "keep_top" keeps the k leading directions
    alone and "remove_top" all others, likewise the k last ones ("bottom") and k drawn at random ("random", the control:
    the first k of one permutation drawn from `seed`, so that those of a larger k contain those of a smaller).

    Args:
        probe: the rows that the covariance is estimated on.
        choices: the questions.
        ks: numbers of directions.
        kinds: which directions are kept or removed; see above.
        mean: where the probe's mean m goes. "keep": m + P(h − m), the mean always stays; "remove": P(h − m);
            "project": P h, of which only what lies in the kept directions stays.
        positions: which positions of the probe are read, as for the geometry.
        seed: of the random directions.
        batch_size: rows that go through the model together.
        normalise: see `ChoiceAccuracy`.

    Raises:
        TypeError, ValueError: an argument is wrong by itself. What needs the model is raised by `check`.
    """

    def __init__(
        self,
        probe: ProbeSet,
        choices: Choices,
        *,
        ks: Sequence[int] = (1, 10, 50),
        kinds: Sequence[str] = KINDS,
        mean: str = "keep",
        positions: Positions = "last",
        seed: int = 0,
        batch_size: int = 32,
        normalise: str = "none",
    ) -> None:
        if not isinstance(probe, ProbeSet):
            raise TypeError(f"probe is a {type(probe).__name__}: build it with ProbeSet.from_texts")
        check_choices(choices, batch_size, normalise)
        check_positions(positions, probe.lengths_n)
        _check_arguments(ks, kinds, mean)
        self.probe, self.choices = probe, choices
        self.ks, self.kinds, self.mean = sorted(ks), tuple(kinds), mean
        self.positions, self.seed, self.batch_size, self.normalise = positions, seed, batch_size, normalise
        n = int(position_count(probe.lengths_n, positions).sum())
        if n <= max(self.ks):
            raise ValueError(
                f"ks={tuple(ks)} asks for {max(ks)} directions, and the probe's n = {n} features have {n - 1}: take"
                " more rows or positions, or lower ks"
            )
        self.n = n

    @property
    def fingerprint(self) -> str:
        """Names what is measured on, and how."""
        how = f"{self.ks} {self.kinds} {self.mean} {self.positions} {self.seed} {self.normalise}"
        return f"{self.probe.fingerprint}-{self.choices.fingerprint}-{hashlib.sha256(how.encode()).hexdigest()[:8]}"

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where questions, probe or ks do not fit the model."""
        check_tokens(model, "choices", self.choices.max_token_id, self.choices.max_tokens)
        check_tokens(model, "probe rows", self.probe.max_token_id, int(self.probe.lengths_n.max()))
        shortest = self.probe.batch(self.probe.lengths_n.argmin(0, keepdim=True))
        with evaluating(model) as language_model:
            features, _ = Reader(language_model).read(shortest, self.positions)
        d = next(iter(features.values())).shape[1]
        if max(self.ks) > d:
            raise ValueError(
                f"ks={tuple(self.ks)} asks for {max(self.ks)} directions, and the model's states have d = {d}: lower ks"
            )
        if self.n <= d and any(not kind.endswith("_top") for kind in self.kinds):
            raise ValueError(
                f"n = {self.n} features do not determine all d = {d} directions: take more than {d}, or only the kinds"
                " 'keep_top' and 'remove_top'"
            )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Accuracies of the model as it is and of each projection.

        Returns:
            `full`, and `<kind>_<k>` for each kind and k, such as `remove_top_10`; the same with `_low` and `_high`,
            the 95 % Wilson interval.

        Raises:
            ValueError: see `check`; also non-finite hidden states, or a model whose head cannot be run by itself.
        """
        self.check(model)
        with evaluating(model) as language_model:
            directions = directions_of(language_model, self.probe, self.positions, self.batch_size)
            kept = self._kept(len(directions.mean_d))
            scores = self._scores(language_model, directions, kept)
        found: dict[str, float] = {}
        for name, score_o in scores.items():
            measured = accuracy_of(self.choices, score_o, self.normalise)
            found |= {name: measured["accuracy"], f"{name}_low": measured["low"], f"{name}_high": measured["high"]}
        return found

    def _kept(self, d: int) -> dict[str, Tensor]:
        """The numbers of the eigendirections that each intervention keeps, by its name."""
        generator = torch.Generator().manual_seed(self.seed)
        orders = {
            "top": torch.arange(d),
            "bottom": torch.arange(d).flip(0),
            "random": torch.randperm(d, generator=generator),
        }
        kept = {}
        for kind in self.kinds:
            action, _, which = kind.partition("_")
            for k in self.ks:
                kept[f"{kind}_{k}"] = (orders[which][:k] if action == "keep" else orders[which][k:]).sort().values
        return kept

    def _scores(self, language_model: Any, directions: Directions, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Summed log-probability (o,) of each option, for the model as it is and for each intervention."""
        options = sum(map(len, self.choices.option_ids))
        scores = {name: torch.zeros(options, dtype=torch.float64) for name in ("full", *kept)}
        for number, batch in enumerate(option_batches(self.choices, self.batch_size, device_of(language_model))):
            hidden_md = _hidden_states(language_model, batch)
            if not bool(torch.isfinite(hidden_md).all()):
                raise ValueError("hidden states of the choices are not finite: there is nothing to project")
            if number == 0:
                check_head(language_model, hidden_md, batch)
            for name, score_o in scores.items():
                projected_md = hidden_md if name == "full" else project(hidden_md, directions, kept[name], self.mean)
                logprob_m = logprobs(head_logits(language_model, projected_md), batch)
                score_o.index_add_(0, batch.option_m.cpu(), logprob_m)
        return scores


def directions_of(language_model: Any, probe: ProbeSet, positions: Positions, batch_size: int = 32) -> Directions:
    """Mean and eigenvectors of the last layer's states on a probe, as the geometry reads them.

    Raises:
        ValueError: a state is not finite.
    """
    reader = Reader(language_model)
    store: Moments | None = None
    for batch in probe.batches(batch_size):
        features, origin = reader.read(batch, positions)
        (feature_md,) = features.values()
        store = store or Moments(feature_md.shape[1], feature_md.device)
        store.update(feature_md, origin)
    assert store is not None  # a probe has rows
    n, mean_d, m2_dd = store.finish()
    if not bool(torch.isfinite(m2_dd).all()):  # checked before the solve: it may return finite numbers for NaN
        raise ValueError("hidden states of the probe are not finite: they have no eigendirections")
    values_d, vectors_dd = torch.linalg.eigh(m2_dd / max(n - 1, 1))
    return Directions(mean_d, values_d.flip(0).clamp_min(0.0), vectors_dd.flip(1))


def project(hidden_md: Tensor, directions: Directions, kept: Tensor, mean: str = "keep") -> Tensor:
    """Hidden states (m, d) with nothing but the `kept` eigendirections, in their own dtype.

    Args:
        hidden_md: the states.
        directions: eigenvectors and mean.
        kept: numbers of the directions that are kept, from 0 (the leading one).
        mean: what happens to the mean; see `SpectralIntervention`.
    """
    mean_d = directions.mean_d
    vectors_dk = directions.vectors_dd[:, kept.to(mean_d.device)]
    wide_md = hidden_md.to(mean_d.device).to(torch.float64)
    centred_md = wide_md if mean == "project" else wide_md - mean_d
    projected_md = centred_md @ vectors_dk @ vectors_dk.T
    if mean == "keep":
        projected_md = projected_md + mean_d
    return projected_md.to(hidden_md.dtype).to(hidden_md.device)


def head_logits(language_model: Any, hidden_md: Tensor) -> Tensor:
    """What the model makes of given backbone outputs (m, d): logits (m, v).

    The model's own forward is run on a single token with the backbone's output exchanged, so that whatever it does
    behind it (scales, soft caps) is done here too. The hook is gone afterwards, whatever happens.
    """

    def exchange(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (hidden_md[None], *output[1:])
        output.last_hidden_state = hidden_md[None]
        return output

    handle = backbone_of(language_model).register_forward_hook(exchange)
    try:
        token = torch.zeros((1, 1), dtype=torch.int64, device=hidden_md.device)
        logits_1mv: Tensor = language_model(input_ids=token, use_cache=False).logits
    finally:
        handle.remove()
    return logits_1mv[0]


def check_head(language_model: Any, hidden_md: Tensor, batch: OptionBatch) -> None:
    """Raise ``ValueError`` unless the head, run on these states by itself, gives the model's own logits."""
    own_mv, found_mv = model_logits(language_model, batch).float(), head_logits(language_model, hidden_md).float()
    coarse = hidden_md.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(hidden_md.device.type)
    off = float((own_mv - found_mv).abs().max()) if own_mv.shape == found_mv.shape else float("inf")
    # Other shapes of the same products round otherwise, no more than that.
    if not off <= (5e-2 if coarse else 1e-3) * float(own_mv.std()):
        raise ValueError(
            f"the head of {type(language_model).__name__}, run on the backbone's output alone, differs from the model's"
            f" own logits by up to {off:.3g}: it reads something else, so that a projection there would not be seen"
        )


def _hidden_states(language_model: Any, batch: OptionBatch) -> Tensor:
    """The backbone's output (m, d) where the tokens of a batch are predicted."""
    output = backbone_of(language_model)(input_ids=batch.input_ids_bt, attention_mask=batch.mask_bt, use_cache=False)
    hidden_btd: Tensor = output[0]
    return hidden_btd[batch.row_m, batch.position_m]


def _check_arguments(ks: Sequence[int], kinds: Sequence[str], mean: str) -> None:
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks={ks!r}: give at least one positive whole number of directions")
    if len(set(ks)) < len(ks):
        raise ValueError(f"ks={ks!r} names a number twice: give each once")
    if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds={kinds!r}: give at least one of {', '.join(KINDS)}, in a list")
    if mean not in MEANS:
        raise ValueError(f"mean={mean!r} is unknown: give {', '.join(map(repr, MEANS))}")
