"""One checkpoint after another: loaded, checked, measured."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomcallbacks.behaviour.monitor import BehaviourMonitor, Measure, check_measures
from geomcallbacks.measure import measure_probe, prepare
from geomcallbacks.probe import ProbeSet
from geomcallbacks.record import GeometryRecord
from geomcallbacks.settings import ReadingSettings as Settings
from geomcallbacks.trace.checkpoints.find import Checkpoint
from geomcallbacks.trace.checkpoints.loading import load_model
from geomcallbacks.trace.recorded import Recorded
from geomcallbacks.trace.vocabulary import Vocabulary

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Reading:
    """How checkpoints are turned into models.

    Attributes:
        dtype: of the weights: "fp32", "bf16", "fp16", or "auto", as they were saved. None: as the run's records imply,
            else "fp32".
        device: where they are measured; None: this process's GPU, where there is one.
        tokenizer: folder or hub name, for models that have none of their own.
        config: configuration of Lightning checkpoints, where it does not lie beside them.
        trust_remote_code: run Python code that comes with a checkpoint.
        evict: delete from the hub's cache what was fetched, once it is measured. A trace that is killed leaves the
            checkpoint in hand and the next one there.
        cache_dir: the hub's cache, where it is not the client's own.
    """

    dtype: str | None = None
    device: str | None = None
    tokenizer: str | None = None
    config: str | None = None
    trust_remote_code: bool = False
    evict: bool = False
    cache_dir: str | None = None


class UnfitError(ValueError):
    """The first checkpoint has shown that the user's probe or settings do not fit."""


class CheckpointMeasure:
    """What is measured of each checkpoint, and how.

    Args:
        given: arguments of `Settings`, in place of those that the run's records state.
        recorded: how the run was measured live, where the checkpoints are a run's.
        reading: how checkpoints are turned into models.

    Raises:
        ValueError, TypeError: a setting is wrong by itself, or there is no such device.
    """

    def __init__(self, given: Mapping[str, Any], recorded: Recorded | None, reading: Reading) -> None:
        self.recorded = recorded
        self.settings = Settings(**((recorded.settings if recorded else {}) | dict(given)))
        self._batch_given = "batch_size" in given
        follows = recorded is not None and self.settings.precision == "training"
        #: Arithmetic of the live run, which precision="training" means here.
        self.precision = recorded.precision if recorded is not None and follows else None
        dtype = reading.dtype or ("fp32" if self.precision in (None, "fp32") else "auto")
        self.reading = replace(reading, dtype=dtype, device=reading.device or _own_device())
        try:
            torch.empty(0, device=self.reading.device)
        except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
            reason = "".join(str(error).strip().splitlines()[:1])
            raise ValueError(f"--device {self.reading.device} cannot be used here: {reason}") from error
        self.probes: Mapping[str, ProbeSet] = {}
        self.measures: Mapping[str, Measure] = {}
        self.vocabulary: Vocabulary | None = None
        self._fits = False

    def limit_batch(self, sizes: list[int]) -> None:
        """Go on with the smallest batch that an earlier start came down to, as a monitor would."""
        if sizes and not self._batch_given:
            self.settings = replace(self.settings, batch_size=min(self.settings.batch_size, *sizes))

    @contextmanager
    def loaded(self, checkpoint: Checkpoint, source: Path) -> Iterator[nn.Module]:
        """The model of a checkpoint, under the arithmetic in which it is measured; its memory is free afterwards.

        Raises:
            UnfitError: it is the first, and probes or settings do not fit it.
            ValueError, OSError: it is broken, or has another vocabulary.
        """
        reading = self.reading
        model = load_model(
            source,
            dtype=str(reading.dtype),
            device=str(reading.device),
            config=reading.config,
            trust_remote_code=reading.trust_remote_code,
            head=bool(self.measures),
        )
        try:
            self._check(model, checkpoint, source)
            with self._arithmetic(model):
                yield model
        finally:
            model.to("meta")  # frees the weights now; reference cycles keep the modules until Python looks for them
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def geometry(self, model: nn.Module, checkpoint: Checkpoint) -> list[GeometryRecord]:
        """A record for each (probe, layer).

        Raises:
            ValueError: none of them has a value.
        """
        settings = self.settings
        if self.recorded is not None and not self._batch_given:
            size = self.recorded.batch_sizes.get(checkpoint.step, settings.batch_size)
            settings = replace(settings, batch_size=size)
        asked = settings.batch_size
        records: list[GeometryRecord] = []
        for label, probe in self.probes.items():
            records += measure_probe(
                settings.reader(model), label, probe, settings, step=checkpoint.step, tokens=checkpoint.tokens
            )
            settings = replace(settings, batch_size=records[-1].batch_size)
        if settings.batch_size < asked:  # memory ran out, and the next checkpoint is as large
            self.limit_batch([settings.batch_size])
        if all(record.metrics["rankme"] is None for record in records):
            raise ValueError(f"nothing can be measured of it: {records[0].reasons['rankme']}")
        return records

    def behaviour(self, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
        """The measures' numbers, as BehaviourMonitor gives them."""
        begin = time.perf_counter()
        values = BehaviourMonitor(self.measures, on_error="raise").measure(model, checkpoint.step)
        return {"tokens": checkpoint.tokens, "seconds": time.perf_counter() - begin, **values}

    def _check(self, model: nn.Module, checkpoint: Checkpoint, source: Path) -> None:
        try:
            _, messages = prepare(model, self.probes, self.settings)
            if self.measures:
                check_measures(self.measures, model)
        except ValueError as error:
            raise (ValueError if self._fits else UnfitError)(f"{checkpoint}: {error}") from error
        for message in messages if not self._fits else ():
            warnings.warn(message, stacklevel=2)
        self._fits = True
        if self.vocabulary is not None:
            self.vocabulary.check(source, self.probes, checkpoint, self.reading.trust_remote_code)

    def _arithmetic(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The autocast of the live run, unless the weights themselves are of that type."""
        wanted = _AUTOCAST.get(self.precision or "")
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        if wanted is None or own == wanted:
            return nullcontext()
        return torch.autocast(torch.device(str(self.reading.device)).type, dtype=wanted)


def _own_device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return "cpu"
