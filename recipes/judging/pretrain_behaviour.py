"""What pretraining is held against along the run: cloze accuracy, n-gram memorisation, loss by token frequency.

Each is off by default. What is measured on is saved in the run folder, so that `geomcallbacks trace` can measure the
checkpoints on the same, and a resumed run goes on with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from text.corpus import Corpus
from training.arguments import setting
from transformers import PreTrainedTokenizerBase

from geomcallbacks import ProbeSet
from geomcallbacks.behaviour import ChoiceAccuracy, FrequencyLoss, Memorisation, save_counts, token_counts
from geomcallbacks.behaviour.dealing import Measure
from judging.cloze import PretrainingCounts, far_cloze, near_cloze
from judging.memorisation_set import memorisation_set

HELD_OUT = "id_test"
"""The part of the corpus that cloze questions and continuations are cut from."""

FAR_DISTANCE = 32
"""Tokens between the answer of a far question and the name that it repeats, at least. ``cloze_far_cut`` asks the same
questions with so many tokens of context alone: what a model answers right there it has not looked up."""

_BATCH = 64  # rows that go through the model together


@dataclasses.dataclass
class BehaviourSettings:
    """What is measured beside the geometry, at the same updates, and written to behaviour.jsonl."""

    cloze_rows: int = setting(0, "questions of each cloze set: what the answer hangs on is near, or far back")
    memorisation_rows: int = setting(0, "held-out continuations compared with an infini-gram model of the text")
    frequency_bands: int = setting(0, "bands of token frequency in which the loss on the probe is logged")


def build_measures(
    settings: BehaviourSettings,
    rows_nt: torch.Tensor,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    probe: ProbeSet,
) -> dict[str, Measure]:
    """Return the measures that the settings ask for, by the name under which they are logged.

    Args:
        settings: How many rows of each; 0 leaves it out.
        rows_nt: The packed training rows.
        corpus: Held-out text comes from its part ``HELD_OUT``.
        tokenizer: Of the run.
        probe: Held-out rows for the loss by token frequency.
    """
    measures: dict[str, Measure] = {}
    held_out = corpus.texts(HELD_OUT) if settings.cloze_rows or settings.memorisation_rows else []
    if settings.cloze_rows:
        counts = PretrainingCounts(corpus.texts("pretrain"), tokenizer)
        size = dict(rows=settings.cloze_rows, seq_length=rows_nt.shape[1] - 1)
        measures["cloze_near"] = ChoiceAccuracy(near_cloze(held_out, counts, **size), batch_size=_BATCH)
        far = far_cloze(held_out, counts, **size, min_distance=FAR_DISTANCE)
        measures["cloze_far"] = ChoiceAccuracy(far, batch_size=_BATCH)
        measures["cloze_far_cut"] = ChoiceAccuracy(far.shortened(FAR_DISTANCE), batch_size=_BATCH)
    if settings.memorisation_rows:
        measures["memorisation"] = memorisation_set(rows_nt, held_out, tokenizer, settings.memorisation_rows)
    if settings.frequency_bands:
        seen = token_counts(rows_nt, len(tokenizer))
        measures["primacy"] = FrequencyLoss(probe, seen, bands=settings.frequency_bands, batch_size=_BATCH)
    return measures


def save_measures(measures: Mapping[str, Measure], folder: Path) -> None:
    """Write what the measures measure on into a run folder, for `geomcallbacks trace`."""
    for name, measure in measures.items():
        if isinstance(measure, ChoiceAccuracy):
            measure.choices.save(folder / f"{name}.json")
        elif isinstance(measure, Memorisation):
            measure.save(folder / f"{name}.safetensors")
        elif isinstance(measure, FrequencyLoss):
            save_counts(measure.counts, folder / "token_counts.txt")
