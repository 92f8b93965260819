"""The callbacks' measurement over saved checkpoints: folders of a run, revisions on the hub, several models in order.

A checkpoint saved at update s gives the numbers that the callback logged at s: the probe is cut into the same batches,
and the checkpoints of a run's folder are read with the probe, the settings and the precision that its records state.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geomcallbacks.record import spectra_folder
from geomcallbacks.running.messages import printable
from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.fetching import fetch_ahead
from geomcallbacks.trace.checkpoints.find import find_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.loading import Reading
from geomcallbacks.trace.file import TraceFile, behaviour_out, default_out, locked, path_from
from geomcallbacks.trace.measuring import UnfitError, behaviour_lines, geometry_lines, loaded
from geomcallbacks.trace.plan import Measures, Plan, Probes, make_plan
from geomcallbacks.trace.recorded import Recorded, read_recorded


@dataclass(frozen=True)
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
    behaviour: Path | None
    measured: list[str]
    before: int
    failed: dict[str, str]

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
            `geomcallbacks.trace.checkpoints.revisions`. None: `main` of a hub name, everything in a folder.
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
    recorded = read_recorded(Path(names[0])) if len(names) == 1 and Path(names[0]).is_dir() else Recorded()
    if tokens_per_update is None:
        checkpoints = [replace(each, tokens=recorded.tokens.get(each.step, each.tokens)) for each in checkpoints]
    own = checkpoints[share[0] :: share[1]]
    with_tokenizer = list(dict.fromkeys([*own[:1], checkpoints[0], checkpoints[-1]]))
    plan = make_plan(with_tokenizer, hub, reading, recorded, settings=settings or {}, probes=probes, measures=measures)
    path = Path(out).expanduser() if out is not None else default_out(names)
    curve = {"models": [path_from(name, path) for name in names], "dtype": plan.reading.dtype}
    files = [TraceFile(path, plan.geometry_header(curve), checkpoints)]
    if plan.measures:
        files.append(TraceFile(behaviour_out(path), plan.behaviour_header(curve), checkpoints))
    todo = [each for each in own if any(each.step not in file.done for file in files)]
    fits = len(names) > 1 or all(file.done for file in files)
    folder, before = spectra_folder(path), len(own) - len(todo)
    folder.mkdir(exist_ok=True)
    with locked(folder, shared=True) if share[1] > 1 else nullcontext():
        measured, failed = _measure(plan, todo, hub, files, fits=fits, before=before, shown=progress and share[0] == 0)
    if share[1] > 1 and failed:
        # A launcher ends all processes when one ends with an error: this one waits until the others have ended.
        with locked(folder):
            pass
    return Summary(path, files[1].path if plan.measures else None, measured, before, failed)


def _measure(
    plan: Plan, todo: list[Checkpoint], hub: Hub, files: list[TraceFile], *, fits: bool, before: int, shown: bool
) -> tuple[list[str], dict[str, str]]:
    """Measure one checkpoint after another, and put what each gives into the files that lack it.

    Args:
        plan: what is measured, and how.
        todo: the checkpoints.
        hub: fetches them.
        files: the record file, and that of behaviour where it is measured.
        fits: a checkpoint that probes or settings do not fit is passed over; else the first of all raises.
        before: how many others have been measured.
        shown: show a bar.

    Returns:
        Which were measured, and why others could not be.
    """
    from tqdm import tqdm

    measured: list[str] = []
    failed: dict[str, str] = {}
    said: set[str] = set()  # notes, once each: others stand in their lines
    # None: not shown where stderr is no terminal.
    with tqdm(total=before + len(todo), initial=before, unit="checkpoint", disable=None if shown else True) as bar:
        for checkpoint, fetched in fetch_ahead(todo, hub, evict=plan.reading.evict):
            bar.set_description(checkpoint.revision)
            try:
                with loaded(plan, checkpoint, fetched.result()) as subject:
                    for file, measure in zip(files, (geometry_lines, behaviour_lines), strict=False):
                        if checkpoint.step not in file.done:
                            lines = measure(plan, subject, checkpoint, file.path)
                            file.add(checkpoint, lines)
                            for note in {note for line in lines for note in line.get("notes", ())} - said:
                                said.add(note)
                                tqdm.write(f"geomcallbacks trace: {checkpoint}: {printable(note)}", file=sys.stderr)
                measured.append(str(checkpoint))
            except Exception as error:
                if isinstance(error, UnfitError) and not (fits or measured):
                    raise  # nor will it fit the others; of several models each may be another
                reason = failed[str(checkpoint)] = printable(f"{type(error).__name__}: {error}")
                files[0].skip(checkpoint, reason)
                tqdm.write(f"geomcallbacks trace: {checkpoint} was not measured ({reason})", file=sys.stderr)
            bar.update()
    return measured, failed
