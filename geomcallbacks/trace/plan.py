"""The plan of a trace: what is measured of every checkpoint and how, and what the headers of its files say of that."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from geomcallbacks.behaviour.dealing import Measure
from geomcallbacks.behaviour.monitor import measures_header
from geomcallbacks.probe import ProbeSet
from geomcallbacks.settings import ReadingSettings
from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.loading import Reading
from geomcallbacks.trace.probe_source import ProbeSource
from geomcallbacks.trace.recorded import Recorded
from geomcallbacks.trace.vocabulary import Vocabulary, find_vocabulary

Probes = ProbeSet | ProbeSource | Mapping[str, ProbeSet | ProbeSource]
Measures = Mapping[str, Measure] | Callable[[Any, Mapping[str, ProbeSet], ReadingSettings], Mapping[str, Measure]]


@dataclass(frozen=True)
class Plan:
    """What is measured of every checkpoint of a curve, and how.

    Attributes:
        reading: how checkpoints are turned into models, with dtype and device.
        settings: how probes are read.
        probes: by label.
        measures: of behaviour, by name; none where behaviour is not measured.
        vocabulary: the tokenizer that the probes were made with; None: they came as token ids.
        precision: arithmetic of the live run, which precision="training" means here; None: that of the weights.
        batch_sizes: by step and probe, where a run's records state it, in place of that of the settings.
        live: records of the live run, by step, probe and layer.
        from_scratch: whether the run began from random weights; None: it is not known.
    """

    reading: Reading
    settings: ReadingSettings
    probes: Mapping[str, ProbeSet]
    measures: Mapping[str, Measure]
    vocabulary: Vocabulary | None
    precision: str | None
    batch_sizes: Mapping[tuple[int, str], int]
    live: Mapping[tuple[int, str, str], Mapping[str, Any]]
    from_scratch: bool | None

    def geometry_header(self, curve: Mapping[str, Any]) -> dict[str, Any]:
        """Return the header of the record file: how its numbers come about. `curve`: `models` and `dtype`."""
        settings = self.settings.header() | {"recorded_precision": self.precision}
        # Models in order are trained from one another: only the first can have been random.
        from_scratch = False if len(curve["models"]) > 1 else self.from_scratch
        if self.reading.weights is not None:
            settings["weights"] = self.reading.weights
        if from_scratch is not None:
            settings["from_scratch"] = from_scratch
        probes = {label: {"fingerprint": p.fingerprint, "rows": len(p)} for label, p in self.probes.items()}
        return {"trace": curve, "settings": settings, "probes": probes, "versions": _versions()}

    def behaviour_header(self, curve: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same for the file of the measures' numbers."""
        return {"trace": curve, **measures_header(self.measures), "versions": _versions()}


def make_plan(
    checkpoints: Sequence[Checkpoint],
    hub: Hub,
    reading: Reading,
    recorded: Recorded,
    *,
    settings: Mapping[str, Any],
    probes: Probes | None,
    measures: Measures | None,
) -> Plan:
    """Resolve arguments and a run's records into a plan.

    Args:
        checkpoints: where a tokenizer is looked for, in this order.
        hub: fetches it.
        reading: how checkpoints are turned into models.
        recorded: how the run was measured live, where the checkpoints are a run's.
        settings: arguments of `ReadingSettings`, in place of those that the run's records state.
        probes: see `trace`.
        measures: see `trace`.

    Raises:
        ValueError, TypeError: a setting is wrong by itself, a probe cannot be built or does not fit the settings, there
            is no tokenizer or no such device.
    """
    chosen = ReadingSettings(**{**recorded.settings, **settings})
    precision = recorded.precision if chosen.precision == "training" else None
    reading = reading.resolve(dtype="fp32" if precision in (None, "fp32") else "auto")
    if probes is None:
        probes = ProbeSource() if recorded.precision is None else recorded.kept_probes()
    wanted = dict(probes) if isinstance(probes, Mapping) else {"probe": probes}
    if not wanted:
        raise ValueError("probes={} measures nothing: give a ProbeSet, or several by label")
    vocabulary = None
    if callable(measures) or any(isinstance(probe, ProbeSource) and not probe.saved for probe in wanted.values()):
        vocabulary = find_vocabulary(checkpoints, hub, reading)
    tokenizer = vocabulary and vocabulary.tokenizer
    built = {}
    for label, probe in wanted.items():
        built[label] = probe.build(tokenizer) if isinstance(probe, ProbeSource) else probe
        chosen.check_probe(label, built[label])
    made = measures(tokenizer, built, chosen) if callable(measures) else measures
    sizes = {} if "batch_size" in settings else recorded.batch_sizes
    live = recorded.records
    return Plan(reading, chosen, built, made or {}, vocabulary, precision, sizes, live, recorded.from_scratch)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers")}
