"""Primacy: loss by how often a token occurs in training. Frequent tokens are learned first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.behaviour.loss import check_batch_size
from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.batches import ProbeBatch
from geomcallbacks.reading.device import device_of


class FrequencyLoss:
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

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or the rows hold tokens of too few different counts.
    """

    def __init__(self, rows: ProbeSet, counts: Tensor, *, bands: int = 4, batch_size: int = 32) -> None:
        if not isinstance(rows, ProbeSet):
            raise TypeError(f"rows is a {type(rows).__name__}: build it with ProbeSet.from_texts or .from_token_ids")
        check_batch_size(batch_size)
        self.rows, self.batch_size, self.bands = rows, batch_size, bands
        self.counts = _padded(_checked_counts(counts), rows.max_token_id + 1)
        targets_m = rows.input_ids_nt[:, 1:][_predicted(rows.input_ids_nt, rows.lengths_n)]
        count_m = self.counts[targets_m]
        self._band_of_count = _cut(count_m, bands)
        band_m = _bands_of(count_m, self._band_of_count)
        self.tokens = torch.bincount(band_m, minlength=bands).tolist()
        self.edges = [(int(count_m[band_m == band].min()), int(count_m[band_m == band].max())) for band in range(bands)]
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Names what is measured on: rows, counts and number of bands."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"primacy {self.bands} {self.rows.fingerprint}".encode())
            digest.update(self.counts.numpy().astype("<i8").tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def check(self, model: nn.Module) -> None:
        """Raise ``ValueError`` where the rows do not fit the model."""
        check_tokens(model, "rows", self.rows.max_token_id, int(self.rows.lengths_n.max()))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`band_1` (the most frequent tokens), `band_2`, …: nats per token, float64 sums of float32 log-softmax."""
        self.check(model)
        sums = torch.zeros(self.bands, dtype=torch.float64)
        with evaluating(model) as language_model:
            for batch in self.rows.batches(self.batch_size):
                sums += self._sums_of(language_model, batch)
        means = sums / torch.tensor(self.tokens, dtype=torch.float64)
        return {f"band_{band}": float(mean) for band, mean in enumerate(means, start=1)}

    def _sums_of(self, language_model: Any, batch: ProbeBatch) -> Tensor:
        """Summed loss (bands,) of a batch, on the CPU."""
        device = device_of(language_model)
        ids_bt, mask_bt = batch.input_ids_bt.to(device), batch.mask_bt.to(device)
        logits_btv = language_model(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).logits[:, :-1]
        predicted_bt = _predicted(batch.input_ids_bt, batch.lengths_b)
        target_m = batch.input_ids_bt[:, 1:][predicted_bt]
        loss_m = nn.functional.cross_entropy(
            logits_btv[predicted_bt.to(device)].float(), target_m.to(device), reduction="none"
        )
        band_m = _bands_of(self.counts[target_m], self._band_of_count)
        return torch.zeros(self.bands, dtype=torch.float64).index_add_(0, band_m, loss_m.double().cpu())


def token_counts(rows: Iterable[Tensor] | Tensor, vocabulary: int) -> Tensor:
    """How often each token id occurs.

    Args:
        rows: integer tensors of token ids of any shape, or one.
        vocabulary: number of ids that are counted, v.

    Returns:
        (v,) int64 on the CPU.

    Raises:
        ValueError: an id is negative or not below `vocabulary`.
    """
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    for row in [rows] if isinstance(rows, Tensor) else rows:
        ids = row.reshape(-1).to("cpu", torch.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"token ids from {int(ids.min())} to {int(ids.max())}, and vocabulary={vocabulary}: give ids from 0 on,"
                " and the size of the tokenizer that made them"
            )
        counts += torch.bincount(ids, minlength=vocabulary)
    return counts


def save_counts(counts: Tensor, path: str | Path) -> None:
    """Write token counts as text: the count of token 0 on the first line, of token 1 on the second, and so on."""
    np.savetxt(path, _checked_counts(counts).numpy(), fmt="%d")


def load_counts(path: str | Path) -> Tensor:
    """Read what `save_counts` wrote: (v,) int64.

    Raises:
        ValueError: a line is not a whole number that may be a count, or there is none.
    """
    try:
        values = [int(line) for line in Path(path).read_text(encoding="utf-8").split()]
        return _checked_counts(torch.tensor(values, dtype=torch.int64))
    except ValueError as error:
        raise ValueError(f"{path} holds no token counts, one whole number a line: {error}") from error


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
    if len(steps) != len(losses):
        raise ValueError(f"{len(steps)} steps and {len(losses)} losses: give one loss for each step")
    points = [(step, loss) for step, loss in zip(steps, losses, strict=True) if loss is not None]
    if not points:
        raise ValueError("losses holds no value: give at least one measurement")
    first, lowest = points[0][1], min(loss for _, loss in points)
    if lowest >= first:
        return None
    # Taken so, and not as first - share · drop, share=1 meets the lowest value without rounding.
    level = (1 - share) * first + share * lowest
    previous = points[0]
    for point in points[1:]:
        if point[1] <= level:
            return previous[0] + (point[0] - previous[0]) * (previous[1] - level) / (previous[1] - point[1])
        previous = point
    return points[-1][0]


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
    prefix = f"{name}/band_"
    keys = sorted(
        {key for row in records for key in row if key.startswith(prefix)}, key=lambda key: int(key[len(prefix) :])
    )
    if not keys:
        raise ValueError(f"no record holds {prefix}1: log a FrequencyLoss under the name {name!r}")
    rows = sorted((row for row in records if keys[0] in row), key=lambda row: row["step"])
    steps = [row["step"] for row in rows]
    return {key[len(name) + 1 :]: first_below(steps, [row.get(key) for row in rows], share) for key in keys}


def _predicted(ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
    """(b, t − 1) whether position i + 1 is a real token, which the logits at i predict."""
    return torch.arange(1, ids_bt.shape[1]) < lengths_b[:, None]


def _cut(count_m: Tensor, bands: int) -> Tensor:
    """Ascending thresholds (bands − 1,): a count above j of them is in band j from the least frequent on."""
    if isinstance(bands, bool) or not isinstance(bands, int) or bands < 1:
        raise ValueError(f"bands={bands!r}: give a positive whole number")
    values, numbers = torch.unique(count_m, return_counts=True)
    # A count goes where the middle of its predictions falls, so that an edge is off by half a group at most.
    middle = numbers.cumsum(0) - numbers / 2
    band = (middle * bands / len(count_m)).long().clamp_max(bands - 1)
    if len(torch.unique(band)) < bands:
        largest = float(numbers.max()) / len(count_m)
        raise ValueError(
            f"bands={bands} cannot all be filled: the rows' tokens have {len(values)} different counts in training,"
            f" and one of these makes {largest:.0%} of the predictions; give fewer bands, or more rows"
        )
    thresholds: Tensor = values[(band[1:] != band[:-1]).nonzero()[:, 0]]
    return thresholds


def _bands_of(count_m: Tensor, thresholds: Tensor) -> Tensor:
    """Band of each count, 0 for the most frequent."""
    return len(thresholds) - torch.bucketize(count_m, thresholds)


def _checked_counts(counts: Any) -> Tensor:
    if not isinstance(counts, Tensor) or counts.ndim != 1 or counts.is_floating_point() or counts.is_complex():
        shown = f"{tuple(counts.shape)}, {counts.dtype}" if isinstance(counts, Tensor) else type(counts).__name__
        raise ValueError(f"counts are {shown}: give a one-dimensional integer tensor, a count for each token id")
    if len(counts) == 0 or int(counts.min()) < 0 or int(counts.max()) == 0:
        raise ValueError("counts are empty, negative or all zero: count the tokens of the training text")
    return counts.to("cpu", torch.int64)


def _padded(counts: Tensor, length: int) -> Tensor:
    return nn.functional.pad(counts, (0, max(0, length - len(counts))))
