"""Spectral intervention: which directions of the last hidden state a model answers questions with.

Li et al. 2025 (arXiv 2509.23024, table 8) keep, or remove, the leading eigendirections of the representation and score
SciQ again. They leave open at which layer, on what data the covariance is estimated, and where the mean goes. Here the
layer is the backbone's output (what the head reads), the data are a probe's, and the mean stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_positive, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.behaviour.logprobs import TargetBatch, logits_of, logprobs_of
from geomcallbacks.behaviour.measures.accuracy import accuracy_of, option_batches
from geomcallbacks.behaviour.rows.choices import Choices
from geomcallbacks.probe import ProbeSet
from geomcallbacks.reading.device import device_of
from geomcallbacks.reading.locate import backbone_of
from geomcallbacks.reading.positions import Positions, check_positions, position_count
from geomcallbacks.reading.reader import Reader
from geomcallbacks.spectra.moments import Moments

KINDS = ("keep_top", "remove_top", "keep_bottom", "remove_bottom", "keep_random", "remove_random")


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


class SpectralIntervention(Dealt):
    """Multiple choice with the last hidden state projected on some of its eigendirections.

    The covariance is that of the geometry's last layer: the features of `probe` at `positions`, centred, in float64.
    Each hidden state h that predicts a token of an option is replaced by m + P(h − m), with the mean m of the features,
    P = V Vᵀ and the kept eigenvectors in V, and the head is run on the result. Of the `kinds`, "keep_top" keeps the k
    leading directions alone and "remove_top" all others, likewise the k last ones ("bottom") and k drawn at random
    ("random", the control: the first k of one permutation drawn from `seed`, so that those of a larger k contain those
    of a smaller).

    Args:
        probe: the rows that the covariance is estimated on.
        choices: the questions.
        ks: numbers of directions.
        kinds: which directions are kept or removed; see above.
        positions: which positions of the probe are read, as for the geometry.
        seed: of the random directions.
        batch_size: rows that go through the model together.

    Attributes:
        n: features that the covariance is estimated on.
        fingerprint: names what is measured on, and how.

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
        positions: Positions = "last",
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        check_type("probe", probe, ProbeSet)
        check_type("choices", choices, Choices)
        check_positive(batch_size=batch_size)
        check_positions(positions, probe.lengths_n)
        if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks) or len(set(ks)) < len(ks):
            raise ValueError(f"ks={ks!r}: give positive whole numbers of directions, each once")
        if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
            raise ValueError(f"kinds={kinds!r}: give at least one of {', '.join(KINDS)}, in a list")
        self.n = int(position_count(probe.lengths_n, positions).sum())
        if self.n <= max(ks):
            raise ValueError(f"ks={tuple(ks)}: the n = {self.n} features have {self.n - 1} directions; lower ks")
        self.probe, self.choices, self.ks, self.kinds = probe, choices, sorted(ks), tuple(kinds)
        self.positions, self.seed, self.batch_size = positions, seed, batch_size
        # The mean is kept and options are not normalised: words that stand in the fingerprints of older files too.
        how = hashlib.sha256(f"{self.ks} {self.kinds} keep {positions} {seed} none".encode()).hexdigest()[:8]
        self.fingerprint = f"{probe.fingerprint}-{choices.fingerprint}-{how}"

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where questions, probe or ks do not fit the model."""
        check_tokens(model, "choices", self.choices.max_token_id, self.choices.max_tokens)
        check_tokens(model, "probe rows", self.probe.max_token_id, self.probe.max_tokens)
        shortest = self.probe.batch(self.probe.lengths_n.argmin(0, keepdim=True))
        with evaluating(model) as language_model:
            features, _ = _reader(language_model).read(shortest, self.positions)
        d = next(iter(features.values())).shape[1]
        if max(self.ks) > d:
            raise ValueError(f"ks={tuple(self.ks)}: the model's states have d = {d} directions; lower ks")
        if self.n <= d and any(not kind.endswith("_top") for kind in self.kinds):
            remedy = f"take more than {d}, or only the kinds 'keep_top' and 'remove_top'"
            raise ValueError(f"n = {self.n} features do not determine all d = {d} directions: {remedy}")

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Summed log-probability of each option, for the model as it is and then for each projection, in one row.

        Raises:
            ValueError: see `check`; also non-finite hidden states, or a model whose head cannot be run by itself.
        """
        self.check(model)
        with evaluating(model) as language_model:
            directions = directions_of(language_model, self.probe, self.positions, self.batch_size)
            kept = self._kept(len(directions.mean_d))
            score_so = torch.zeros(
                1 + len(kept), sum(map(len, self.choices.option_ids)), dtype=torch.float64, device="cpu"
            )
            share = islice(option_batches(self.choices, self.batch_size), index, None, count)
            for number, batch in enumerate(share):
                hidden_md = _hidden_states(language_model, batch)
                if number == 0:
                    check_head(language_model, hidden_md, batch)
                for score_o, those in zip(score_so, (None, *kept.values()), strict=True):
                    projected_md = hidden_md if those is None else project(hidden_md, directions, those)
                    logprob_m = logprobs_of(head_logits(language_model, projected_md), batch.target_m)
                    score_o.index_add_(0, batch.sum_m, logprob_m)
        return score_so.flatten()

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """Accuracies of the model as it is and of each projection.

        Returns:
            `full`, and `<kind>_<k>` for each kind and k, such as `remove_top_10`; the same with `_low` and `_high`,
            the 95 % Wilson interval.
        """
        names = ("full", *(f"{kind}_{k}" for kind in self.kinds for k in self.ks))
        found: dict[str, float] = {}
        for name, score_o in zip(names, whole_s.chunk(len(names)), strict=True):
            of_name = accuracy_of(self.choices, score_o)
            found |= {name: of_name["accuracy"], f"{name}_low": of_name["low"], f"{name}_high": of_name["high"]}
        return found

    def _kept(self, d: int) -> dict[str, Tensor]:
        """The numbers of the eigendirections that each intervention keeps, by its name."""
        drawn = torch.randperm(d, generator=torch.Generator("cpu").manual_seed(self.seed), device="cpu")
        first = torch.arange(d, device="cpu")
        orders = {"top": first, "bottom": first.flip(0), "random": drawn}
        kept = {}
        for kind in self.kinds:
            action, _, which = kind.partition("_")
            for k in self.ks:
                kept[f"{kind}_{k}"] = (orders[which][:k] if action == "keep" else orders[which][k:]).sort().values
        return kept


def directions_of(language_model: Any, probe: ProbeSet, positions: Positions, batch_size: int = 32) -> Directions:
    """Mean and eigenvectors of the last layer's states on a probe, as the geometry reads them.

    Raises:
        ValueError: a state is not finite.
    """
    reader = _reader(language_model)
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


def _reader(language_model: Any) -> Reader:
    """Return what reads the backbone's output, which some models change once more before their head."""
    names = {module: name for name, module in language_model.named_modules()}
    return Reader(language_model, names[backbone_of(language_model)])


def project(hidden_md: Tensor, directions: Directions, kept: Tensor) -> Tensor:
    """Hidden states (m, d) with nothing but the `kept` eigendirections around the mean, in their own dtype.

    Args:
        hidden_md: the states.
        directions: eigenvectors and mean.
        kept: numbers of the directions that are kept, from 0 (the leading one).
    """
    mean_d = directions.mean_d
    vectors_dk = directions.vectors_dd[:, kept.to(mean_d.device)]
    centred_md = hidden_md.to(mean_d.device).to(torch.float64) - mean_d
    projected_md = centred_md @ vectors_dk @ vectors_dk.T + mean_d
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


def check_head(language_model: Any, hidden_md: Tensor, batch: TargetBatch) -> None:
    """Raise ``ValueError`` unless the head, run on these states by itself, gives the model's own logits."""
    own_mv, found_mv = logits_of(language_model, batch).float(), head_logits(language_model, hidden_md).float()
    coarse = hidden_md.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(hidden_md.device.type)
    off = float((own_mv - found_mv).abs().max()) if own_mv.shape == found_mv.shape else float("inf")
    # Other shapes of the same products round otherwise, no more than that.
    if not off <= (5e-2 if coarse else 1e-3) * float(own_mv.std()):
        found = f"run on the backbone's output alone, differs from the model's own logits by up to {off:.3g}"
        raise ValueError(f"the head of {type(language_model).__name__}, {found}: it reads something else, unprojected")


def _hidden_states(language_model: Any, batch: TargetBatch) -> Tensor:
    """The backbone's output (m, d) where the tokens of a batch are predicted."""
    device = device_of(language_model)
    ids_bt, mask_bt = batch.input_ids_bt.to(device), batch.mask_bt.to(device)
    hidden_btd: Tensor = backbone_of(language_model)(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False)[0]
    hidden_md = hidden_btd[batch.row_m, batch.position_m]
    if not bool(torch.isfinite(hidden_md).all()):
        raise ValueError("hidden states of the choices are not finite: there is nothing to project")
    return hidden_md
