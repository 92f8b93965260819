"""What `--choices`, `--memorisation` and `--intervention` name: the behaviour measured beside the geometry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomcallbacks.behaviour import ChoiceAccuracy, Choices, Memorisation, SpectralIntervention
from geomcallbacks.behaviour.monitor import Measure
from geomcallbacks.probe import ProbeSet
from geomcallbacks.settings import Settings
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
        if self.directions and not self.choices:
            raise ValueError("--intervention needs questions to answer: give --choices too")
        files = {source: "--choices" for source in self.choices.values() if source.endswith((".json", ".jsonl"))}
        if self.memorisation is not None:
            files[self.memorisation] = "--memorisation"
        for file, option in files.items():
            if not Path(file).is_file():
                raise ValueError(f"{option} {file}: there is no such file")

    def build(self, tokenizer: Any, probes: Mapping[str, ProbeSet], settings: Settings) -> dict[str, Measure]:
        """The measures, by the name under which they are recorded."""
        measures: dict[str, Measure] = {}
        for label, source in self.choices.items():
            rows = self._rows_of(source, tokenizer)
            measures[label] = ChoiceAccuracy(rows, batch_size=settings.batch_size)
            if self.directions:
                name = "intervention" if len(self.choices) == 1 else f"intervention_{label}"
                measures[name] = SpectralIntervention(
                    next(iter(probes.values())),
                    rows,
                    ks=self.directions,
                    positions=settings.positions,
                    batch_size=settings.batch_size,
                )
        if self.memorisation is not None:
            measures["memorisation"] = Memorisation.load(self.memorisation, batch_size=settings.batch_size)
        return measures

    def _rows_of(self, source: str, tokenizer: Any) -> Choices:
        if source.endswith(".json"):
            return Choices.load(source)
        try:
            rows = _objects(Path(source)) if source.endswith(".jsonl") else hub_rows(source, split=self.split)
            return Choices.from_sciq(rows, tokenizer)
        except ValueError as error:
            raise ValueError(f"--choices {source}: {error}") from error


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in jsonl_rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is a {type(row).__name__}: give an object a line")
        yield row
