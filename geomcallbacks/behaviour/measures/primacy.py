"""Primacy: loss by how often a token occurs in training. Frequent tokens are learned first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_equal_lengths, check_positive, check_type
from geomcallbacks.behaviour.dealing import Dealt
from geomcallbacks.behaviour.evaluating import check_tokens
from geomcallbacks.behaviour.logprobs import TargetBatch, summed_logprobs
from geomcallbacks.behaviour.rows.counts import checked_counts
from geomcallbacks.behaviour.rows.token_ids import fingerprint_of
from geomcallbacks.probe import ProbeSet


class FrequencyLoss(Dealt):
    """Loss on held-out rows in nats per token, by the training frequency of the token that is predicted.

    Every token of a row but its first is predicted from those before it. Bands are cut by the count of the token
    in training, so that each has an equal number of held-out predictions, as nearly as tokens of equal count can stay
    together: a band of rare tokens then holds many kinds of token and is no noisier than one of frequent ones.

    Args:
        rows: the held-out rows.
        counts: (v,) how often each token id occurs in the training text; see `token_counts`. Tokens from v on count
            as never seen.
        bands: how many.
        batch_size: rows that go through the model together.

    Attributes:
        edges: (lowest, highest) count in training of each band's tokens, from the most frequent on.
        tokens: held-out predictions of each band.
        fingerprint: names what is measured on: rows, counts and number of bands.

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or the rows hold tokens of too few different counts.
    """

    def __init__(self, rows: ProbeSet, counts: Tensor, *, bands: int = 4, batch_size: int = 32) -> None:
        check_type("rows", rows, ProbeSet)
        check_positive(bands=bands, batch_size=batch_size)
        counts = checked_counts(counts)
        self.rows, self.batch_size, self.bands = rows, batch_size, bands
        self.counts = nn.functional.pad(counts, (0, max(0, rows.max_token_id + 1 - len(counts))))
        *_, target_m = _targets(rows.input_ids_nt, rows.lengths_n)
        count_m = self.counts[target_m]
        self._thresholds = _thresholds(count_m, bands)
        band_m = self._bands_of(count_m)
        self.tokens = torch.bincount(band_m, minlength=bands).tolist()
        self.edges = [(int(count_m[band_m == band].min()), int(count_m[band_m == band].max())) for band in range(bands)]
        self.fingerprint = fingerprint_of(f"primacy {bands} {rows.fingerprint}", [self.counts.tolist()])

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the rows do not fit the model."""
        check_tokens(model, "rows", self.rows.max_token_id, self.rows.max_tokens)

    def part(self, model: nn.Module, index: int = 0, count: int = 1) -> Tensor:
        """Log-probability of all tokens of each band: float64 sums of float32 log-softmax."""
        self.check(model)
        return summed_logprobs(model, self._batches(), self.bands, index, count)

    def numbers(self, whole_s: Tensor) -> dict[str, float]:
        """`band_1` (the most frequent tokens), `band_2`, …: nats per token."""
        losses = -whole_s / torch.tensor(self.tokens, device="cpu")
        return {f"band_{band}": float(loss) for band, loss in enumerate(losses, start=1)}

    def _batches(self) -> Iterator[TargetBatch]:
        """The rows in batches; sums are the bands."""
        for batch in self.rows.batches(self.batch_size):
            row_m, position_m, target_m = _targets(batch.input_ids_bt, batch.lengths_b)
            band_m = self._bands_of(self.counts[target_m])
            yield TargetBatch(batch.input_ids_bt, batch.mask_bt, row_m, position_m, target_m, band_m)

    def _bands_of(self, count_m: Tensor) -> Tensor:
        """Band of each count, 0 for the most frequent."""
        return self.bands - 1 - torch.bucketize(count_m, self._thresholds)


def first_below(steps: Sequence[float], losses: Sequence[float | None], share: float = 0.5) -> float | None:
    """At which update a loss has made a share of its whole drop, from its first value to its lowest.

    Between two measurements the loss is taken to fall in a straight line. Values that are missing are passed over.

    Args:
        steps: updates, in ascending order.
        losses: the loss at each.
        share: of the drop, above 0 and up to 1.

    Returns:
        The update, or None where the loss never falls below its first value.

    Raises:
        ValueError: the two differ in length, hold no value, or `share` is no share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a number above 0 and up to 1")
    check_equal_lengths(steps=steps, losses=losses)
    points = [(step, loss) for step, loss in zip(steps, losses, strict=True) if loss is not None]
    if not points:
        raise ValueError("losses holds no value: give at least one measurement")
    first, lowest = points[0][1], min(loss for _, loss in points)
    # In this form share=1 meets the lowest value without rounding; first - share · drop does not.
    level = (1 - share) * first + share * lowest
    for (step, loss), (later, lower) in pairwise(points):
        if lower <= level < loss:
            return step + (later - step) * (loss - level) / (loss - lower)
    return None


def learned_at(
    records: Sequence[Mapping[str, Any]], name: str = "primacy", share: float = 0.5
) -> dict[str, float | None]:
    """At which update each band of a `FrequencyLoss` has made a share of its drop: ascending where there is primacy.

    Args:
        records: what `read_records` returns of a `behaviour.jsonl`.
        name: under which the measure was logged.
        share: see `first_below`.

    Returns:
        By band, `band_1` first.

    Raises:
        ValueError: no record has a loss by band under this name.
    """
    rows = sorted((row for row in records if f"{name}/band_1" in row), key=lambda row: row["step"])
    if not rows:
        raise ValueError(f"no record holds {name}/band_1: log a FrequencyLoss under the name {name!r}")
    steps = [row["step"] for row in rows]
    bands = [key for key in rows[0] if key.startswith(f"{name}/band_")]
    return {key.removeprefix(f"{name}/"): first_below(steps, [row.get(key) for row in rows], share) for key in bands}


def _targets(ids_bt: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every real token (m,) but the first of its row: its row, the position that predicts it, and its id."""
    predicted_bt = torch.arange(1, ids_bt.shape[1], device="cpu") < lengths_b[:, None]
    row_m, position_m = predicted_bt.nonzero(as_tuple=True)
    return row_m, position_m, ids_bt[row_m, position_m + 1]


def _thresholds(count_m: Tensor, bands: int) -> Tensor:
    """Ascending thresholds (bands − 1,): a count above j of them is in band j from the least frequent on."""
    values, numbers = torch.unique(count_m, return_counts=True)
    # A count goes where the middle of its predictions falls, so that an edge is off by half a group at most.
    middle = numbers.cumsum(0) - numbers / 2
    band = (middle * bands / len(count_m)).long().clamp_max(bands - 1)
    if len(torch.unique(band)) < bands:
        largest = float(numbers.max()) / len(count_m)
        found = f"the rows' tokens have {len(values)} different counts, one of them {largest:.0%} of the predictions"
        raise ValueError(f"bands={bands} cannot all be filled: {found}; give fewer bands, or more rows")
    thresholds: Tensor = values[(band[1:] != band[:-1]).nonzero()[:, 0]]
    return thresholds
