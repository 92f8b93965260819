"""The callbacks' measurement over saved checkpoints: folders of a run, revisions on the hub, several models in order.

A checkpoint saved at update s gives the numbers that the callback logged at s: the probe is cut into the same batches,
and the checkpoints of a run's folder are read with the probe, the settings and the precision that its records state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from geomcallbacks.behaviour.monitor import Measure
from geomcallbacks.probe import ProbeSet
from geomcallbacks.running.messages import printable
from geomcallbacks.running.writer import record_lines, write_spectra
from geomcallbacks.settings import ReadingSettings as Settings
from geomcallbacks.trace.about import about_behaviour, about_geometry
from geomcallbacks.trace.checkpoints.find import Checkpoint, find_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.file import TraceFile, behaviour_out, default_out, locked, path_from
from geomcallbacks.trace.measuring import CheckpointMeasure, Reading, UnfitError
from geomcallbacks.trace.probe_source import ProbeSource
from geomcallbacks.trace.progress import Ahead, Bar
from geomcallbacks.trace.recorded import Recorded, read_recorded
from geomcallbacks.trace.vocabulary import Vocabulary, find_vocabulary

Probes = ProbeSet | ProbeSource | Mapping[str, ProbeSet | ProbeSource]
Measures = Mapping[str, Measure] | Callable[[Any, Mapping[str, ProbeSet], Settings], Mapping[str, Measure]]


@dataclass
class Summary:
    """What a trace has done.

    Attributes:
        path: the record file.
        behaviour: the file of the measures' numbers, if there were measures.
        measured: checkpoints measured now.
        before: how many of this process's share an earlier start had measured.
        failed: why others could not be, by checkpoint; the next start tries them again.
    """

    path: Path
    behaviour: Path | None = None
    measured: list[str] = field(default_factory=list)
    before: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """1 where a checkpoint failed, else 0."""
        return int(bool(self.failed))


def trace(
    models: str | Path | Sequence[str | Path],
    *,
    revisions: str | Sequence[str] | None = None,
    probes: Probes | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    measures: Measures | None = None,
    reading: Reading | None = None,
    tokens_per_update: int | None = None,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Summary:
    """Measure the geometry of each checkpoint of a curve, as a callback does in training.

    A trace that was stopped goes on where it was: started again with the same arguments, it measures what is missing.

    Args:
        models: a hub name (`name` or `name@revision`), a folder of checkpoints, or several in order as one curve.
        revisions: "all", "log", names with commas between them, a file of names, or a list; see
            `geomcallbacks.trace.names`. None: `main` of a hub name, everything in a folder.
        probes: one or several by label, ready or still text. None: what the run in that folder was measured on, else
            offline text. One probe serves all checkpoints.
        settings: arguments of GeometryMonitor of the same names, in place of those that the run's records state.
        out: the record file. None: `geometry-trace.jsonl` in the folder, or `<model>-geometry.jsonl` here.
        measures: what behaviour is measured beside geometry, by name, or a function that gives it, of tokenizer, probes
            and settings. Its numbers go to a file of their own, named as `out` with "behaviour" for "geometry".
        reading: how checkpoints are turned into models.
        tokens_per_update: training tokens of one update, where neither names nor records tell.
        share: (r, k): measure every k-th checkpoint, from the r-th on; k processes with one `out` share a curve.
        progress: show a bar with the time left.

    Returns:
        What was done. A checkpoint that cannot be read or measured is reported on stderr and passed over.

    Raises:
        ValueError: no such model or revision, no tokenizer, a probe or settings that do not fit the one model, a
            record file of another curve, probe or settings.
    """
    reading = reading or Reading()
    given = [models] if isinstance(models, (str, Path)) else models
    names = [str(path) if (path := Path(model).expanduser()).exists() else str(model) for model in given]
    hub = Hub(reading.cache_dir, code=reading.trust_remote_code)
    checkpoints = find_checkpoints(names, hub, revisions, tokens_per_update)
    recorded = read_recorded(Path(names[0])) if len(names) == 1 and Path(names[0]).is_dir() else None
    if recorded is not None and tokens_per_update is None:
        checkpoints = [replace(each, tokens=recorded.tokens.get(each.step, each.tokens)) for each in checkpoints]
    trace_of = _Trace(checkpoints, hub, CheckpointMeasure(settings or {}, recorded, reading), share)
    trace_of.prepare(probes, measures)
    path = Path(out).expanduser() if out is not None else default_out(names)
    return trace_of.run(path, [path_from(name, path) for name in names], progress)


class _Trace:
    """One start of a trace."""

    def __init__(
        self, checkpoints: list[Checkpoint], hub: Hub, measure: CheckpointMeasure, share: tuple[int, int]
    ) -> None:
        self.checkpoints, self.hub, self.measure, self.share = checkpoints, hub, measure, share
        self.mine = checkpoints[share[0] :: share[1]]
        self.placed = False

    def prepare(self, probes: Probes | None, measures: Measures | None) -> None:
        """Probes and measures, with the tokenizer where they need one."""
        measure = self.measure
        if probes is None:
            probes = _recorded_probes(measure.recorded) if measure.recorded is not None else ProbeSource()
        wanted = dict(probes) if isinstance(probes, Mapping) else {"probe": probes}
        if not wanted:
            raise ValueError("probes={} measures nothing: give a ProbeSet, or several by label")
        if callable(measures) or any(isinstance(p, ProbeSource) and not p.saved for p in wanted.values()):
            measure.vocabulary = self._find_vocabulary()
        tokenizer = measure.vocabulary and measure.vocabulary.tokenizer
        measure.probes = {
            label: probe.build(tokenizer) if isinstance(probe, ProbeSource) else probe
            for label, probe in wanted.items()
        }
        for label, rows in measure.probes.items():
            measure.settings.check_probe(label, rows)
        made = measures(tokenizer, measure.probes, measure.settings) if callable(measures) else measures
        measure.measures = made or {}

    def run(self, out: Path, models: list[str], progress: bool) -> Summary:
        """Measure what is missing of this process's share."""
        curve = {"models": models, "dtype": self.measure.reading.dtype}
        geometry = TraceFile(out, about_geometry(self.measure, curve))
        more = TraceFile(behaviour_out(out), about_behaviour(self.measure, curve)) if self.measure.measures else None
        self.placed = len(models) > 1
        done = [self._done(file) for file in (geometry, more) if file is not None]
        todo = [each for each in self.mine if not all(each.step in steps for steps in done)]
        summary = Summary(out, more.path if more else None, before=len(self.mine) - len(todo))
        self.measure.limit_batch([record["batch_size"] for record in geometry.records()])
        geometry.spectra_folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            if self.share[1] > 1:
                stack.enter_context(locked(geometry.spectra_folder, shared=True))
            bar = stack.enter_context(Bar(progress and self.share[0] == 0, len(self.mine), summary.before))
            for checkpoint, fetched in self._fetched(todo):
                bar.show(checkpoint.revision)
                try:
                    self._one(checkpoint, fetched, geometry, more)
                    summary.measured.append(str(checkpoint))
                except Exception as error:
                    if isinstance(error, UnfitError) and not self.placed and not all(done):
                        raise  # nor will it fit the others; of several models each may be another
                    reason = summary.failed[str(checkpoint)] = printable(f"{type(error).__name__}: {error}")
                    if checkpoint.step not in self._done(geometry):
                        geometry.skip(checkpoint.step, reason, _of(checkpoint))
                    bar.write(f"geomcallbacks trace: {checkpoint} was not measured ({reason})")
                bar.advance()
        if self.share[1] > 1 and summary.failed:
            # A launcher ends all processes when one ends with an error: this one waits until the others have ended.
            with locked(geometry.spectra_folder):
                pass
        return summary

    def _done(self, file: TraceFile) -> set[int]:
        return file.done(self.checkpoints, placed=self.placed)

    def _fetched(self, todo: list[Checkpoint]) -> Iterator[tuple[Checkpoint, Ahead[Path]]]:
        """Each checkpoint with its files, the next being fetched meanwhile; evicted when it has been used."""
        ahead = Ahead(partial(self._fetch, todo[0])) if todo else None
        before: Checkpoint | None = None
        for checkpoint, following in zip(todo, [*todo[1:], None], strict=False):
            assert ahead is not None
            ahead.wait()
            self._evict(before)  # while nothing is being fetched: revisions share files
            current, before = ahead, checkpoint
            ahead = Ahead(partial(self._fetch, following)) if following is not None else None
            yield checkpoint, current
        if self.measure.reading.evict:
            self.hub.evict_all()

    def _fetch(self, checkpoint: Checkpoint) -> Path:
        if checkpoint.problem is not None:
            raise ValueError(checkpoint.problem)
        return checkpoint.source or self.hub.fetch(checkpoint.model, checkpoint.revision)

    def _evict(self, checkpoint: Checkpoint | None) -> None:
        if self.measure.reading.evict and checkpoint is not None and checkpoint.source is None:
            self.hub.evict(checkpoint.model, checkpoint.revision)

    def _one(self, checkpoint: Checkpoint, fetched: Ahead[Path], geometry: TraceFile, more: TraceFile | None) -> None:
        with self.measure.loaded(checkpoint, fetched.result()) as model:
            if checkpoint.step not in self._done(geometry):
                records = self.measure.geometry(model, checkpoint)
                lines = record_lines(records, write_spectra(geometry.spectra_folder, checkpoint.step, records))
                geometry.add(checkpoint.step, [line | _of(checkpoint) for line in lines])
            if more is not None and checkpoint.step not in self._done(more):
                values = self.measure.behaviour(model, checkpoint)
                more.add(checkpoint.step, [{"step": checkpoint.step} | values | _of(checkpoint)])

    def _find_vocabulary(self) -> Vocabulary:
        """The tokenizer that was given, else that of the first checkpoint of this process's share which has one."""
        reading = self.measure.reading
        if reading.tokenizer is not None:
            return Vocabulary.load(reading.tokenizer, own=False, trust_remote_code=reading.trust_remote_code)
        chosen = dict.fromkeys([*self.mine[:1], self.checkpoints[0], self.checkpoints[-1]])
        fetch = lambda each: each.source or self.hub.fetch(each.model, each.revision, weights=False)
        sources = [partial(fetch, each) for each in chosen]
        return find_vocabulary(sources, reading.config, reading.trust_remote_code)


def _recorded_probes(recorded: Recorded) -> dict[str, ProbeSet]:
    missing = sorted(set(recorded.fingerprints) - set(recorded.probes))
    if missing:
        said = ", ".join(f"{label!r} ({recorded.fingerprints[label]})" for label in missing)
        text = f"the run was measured on probe {said}, which is not kept in its folder"
        if not recorded.probes:
            raise ValueError(f"{text}: give one with --probe")
        warnings.warn(f"{text}: only the others are measured", stacklevel=4)
    return recorded.probes


def _of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"model": checkpoint.model, "revision": checkpoint.revision}
