"""What `--choices`, `--memorisation` and `--intervention` name: the behaviour measured beside the geometry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomcallbacks.behaviour import ChoiceAccuracy, Choices, Memorisation, SpectralIntervention
from geomcallbacks.behaviour.dealing import Measure
from geomcallbacks.probe import ProbeSet
from geomcallbacks.settings import ReadingSettings
from geomcallbacks.trace.rows import hub_rows, jsonl_rows


@dataclass(frozen=True)
class BehaviourSource:
    """Files and data sets by label, which become measures once tokenizer and probes are known.

    Attributes:
        choices: multiple choice by label: saved `Choices` (*.json), or rows of SciQ's schema in *.jsonl or a data set
            on the hub.
        memorisation: a saved `Memorisation`.
        directions: numbers of eigendirections that are kept or removed while each of `choices` is answered; the
            directions are those of the first probe.
        split: of a hub data set.

    Raises:
        ValueError: there is no such file, or directions without choices.
    """

    choices: Mapping[str, str] = field(default_factory=dict)
    memorisation: str | None = None
    directions: tuple[int, ...] = ()
    split: str = "test"

    def __post_init__(self) -> None:
        choices = {label: os.path.expanduser(source) for label, source in self.choices.items()}
        object.__setattr__(self, "choices", choices)
        if self.memorisation is not None:
            object.__setattr__(self, "memorisation", os.path.expanduser(self.memorisation))
        if self.directions and not self.choices:
            raise ValueError("--intervention needs questions to answer: give --choices too")
        files = [("--choices", source) for source in self.choices.values() if source.endswith((".json", ".jsonl"))]
        for option, file in [*files, ("--memorisation", self.memorisation)]:
            if file is not None and not Path(file).is_file():
                raise ValueError(f"{option} {file}: there is no such file")

    def build(self, tokenizer: Any, probes: Mapping[str, ProbeSet], settings: ReadingSettings) -> dict[str, Measure]:
        """Build the measures, by the name under which they are recorded."""
        measures: dict[str, Measure] = {}
        size, probe = settings.batch_size, next(iter(probes.values()))
        for label, source in self.choices.items():
            rows = self._choices(source, tokenizer)
            measures[label] = ChoiceAccuracy(rows, batch_size=size)
            if self.directions:
                name = "intervention" if len(self.choices) == 1 else f"intervention_{label}"
                measures[name] = SpectralIntervention(
                    probe, rows, ks=self.directions, positions=settings.positions, batch_size=size
                )
        if self.memorisation is not None:
            measures["memorisation"] = Memorisation.load(self.memorisation, batch_size=size)
        return measures

    def _choices(self, source: str, tokenizer: Any) -> Choices:
        if source.endswith(".json"):
            return Choices.load(source)
        try:
            if source.endswith(".jsonl"):
                return Choices.from_sciq((row for _, row in jsonl_rows(Path(source))), tokenizer)
            return Choices.from_sciq(hub_rows(source, split=self.split), tokenizer)
        except ValueError as error:
            raise ValueError(f"--choices {source}: {error}") from error
