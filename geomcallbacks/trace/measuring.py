"""One checkpoint by the plan: loaded, checked, measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomcallbacks.behaviour.monitor import BehaviourMonitor, check_measures
from geomcallbacks.measure import measure_probe
from geomcallbacks.prepare import prepare
from geomcallbacks.reading.weights import TRAINING, is_average, storage_of
from geomcallbacks.record import GeometryRecord, spectra_folder
from geomcallbacks.running.record_writer import record_lines, write_spectra
from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.held import Weights
from geomcallbacks.trace.checkpoints.loading import load_model
from geomcallbacks.trace.plan import Plan

#: What must agree before a number is held against the live one, and the share of it that another machine may differ by.
_SAME_WAY = ("fingerprint", "positions", "n", "d", "precision")
_FAR = 0.02

#: Label and storage of weights, as in a `GeometryRecord`.
Held = tuple[str, str | None]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UnfitError(ValueError):
    """The user's probe or settings do not fit a checkpoint."""


@dataclass(frozen=True)
class Loaded:
    """The model of a checkpoint, and which weights it holds (`geomcallbacks.reading.weights`)."""

    model: nn.Module
    weights: str


@contextmanager
def loaded(plan: Plan, checkpoint: Checkpoint, source: Path) -> Iterator[Loaded]:
    """Give the model of a checkpoint, under the arithmetic in which it is measured; free its memory afterwards.

    Raises:
        UnfitError: probes, settings or measures do not fit it.
        ValueError, OSError: it is broken, or has another vocabulary.
    """
    live = _live_weights(plan, checkpoint.step)
    preferred: Weights | None = None if live is None else "average" if is_average(live[0]) else "training"
    model, weights = load_model(source, plan.reading, head=bool(plan.measures), preferred=preferred)
    try:
        try:
            _, messages = prepare(model, plan.probes, plan.settings)
            check_measures(plan.measures, model)
        except ValueError as error:
            raise UnfitError(f"{checkpoint}: {error}") from error
        for message in messages:
            warnings.warn(message, stacklevel=3)
        if plan.vocabulary is not None:
            plan.vocabulary.check(source, plan.probes, checkpoint, plan.reading.trust_remote_code)
        with _arithmetic(plan, model):
            yield Loaded(model, weights)
    finally:
        model.to("meta")  # frees the weights now; reference cycles keep the modules until Python looks for them
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def geometry_lines(plan: Plan, subject: Loaded, checkpoint: Checkpoint, path: Path) -> list[dict[str, Any]]:
    """Return a line of the record file `path` for each (probe, layer), and keep their eigenvalues beside it.

    Raises:
        ValueError: none of them has a value.
    """
    reader, step = plan.settings.reader(subject.model), checkpoint.step
    storage, records = storage_of(reader.called), []
    notes = other_weights(_live_weights(plan, step), (subject.weights, storage))
    for label, probe in plan.probes.items():
        settings = replace(plan.settings, batch_size=plan.batch_sizes.get((step, label), plan.settings.batch_size))
        records += measure_probe(reader, label, probe, settings, step=step, tokens=checkpoint.tokens)
    if all(record.metrics["rankme"] is None for record in records):
        raise ValueError(f"nothing can be measured of it: {records[0].reasons['rankme']}")
    kept = write_spectra(spectra_folder(path), step, records)
    named = []
    for each in records:
        said = notes or other_number(plan.live.get((step, each.probe, each.layer)), each)
        named.append(replace(each, weights=subject.weights, storage=storage, notes=[*each.notes, *said]))
    return record_lines(named, kept)


def other_weights(live: Held | None, here: Held) -> list[str]:
    """Say that the live run measured other weights at this step; nothing where it did not, or where there is none."""
    if live is None:
        return []
    notes = []
    if is_average(live[0]) != is_average(here[0]):
        pair = f"{live[0]} weights, and these are {here[0]} weights"
        notes.append(f"the run was measured on {pair}: the numbers are not those that it logged")
    if live[1] != here[1]:
        stored = [f"weights stored as {storage}" if storage else "plain weights" for _, storage in (live, here)]
        notes.append(f"the run was measured on {stored[0]}, and these are {stored[1]}: the numbers differ by that")
    return notes


def other_number(live: Mapping[str, Any] | None, here: GeometryRecord) -> list[str]:
    """Say that a number is not the one that the live run logged, though both were measured in one way."""
    if live is None or any(live.get(key) != getattr(here, key) for key in _SAME_WAY):
        return []
    logged, found = live.get("rankme"), here.metrics["rankme"]
    if logged is None or found is None or abs(found - logged) <= _FAR * logged:
        return []
    remedy = "the checkpoint holds other weights than were measured, such as an average, or is another run's"
    return [
        f"the run logged RankMe {logged:.4g} on {here.curve} at step {here.step}, and this is {found:.4g}: {remedy}"
    ]


def _live_weights(plan: Plan, step: int) -> Held | None:
    """Return which weights the live run measured at this step; None where it measured none."""
    live = next((record for (at, _, _), record in plan.live.items() if at == step), None)
    return None if live is None else (live.get("weights", TRAINING), live.get("storage"))


def behaviour_lines(plan: Plan, subject: Loaded, checkpoint: Checkpoint, path: Path) -> list[dict[str, Any]]:
    """Return one line for the file `path`, of the measures' numbers as BehaviourMonitor gives them."""
    begin = time.perf_counter()
    values = BehaviourMonitor(plan.measures, on_error="raise").measure(subject.model, checkpoint.step)
    seconds = time.perf_counter() - begin
    return [{"step": checkpoint.step, "tokens": checkpoint.tokens, "seconds": seconds, **values}]


def _arithmetic(plan: Plan, model: nn.Module) -> AbstractContextManager[Any]:
    """Return the autocast of the live run, unless the weights themselves are of that type."""
    wanted = _AUTOCAST.get(plan.precision or "")
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if wanted is None or own == wanted:
        return nullcontext()
    return torch.autocast(torch.device(str(plan.reading.device)).type, dtype=wanted)
