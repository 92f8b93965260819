"""The callbacks' measurement over saved checkpoints: folders of a run, revisions on the hub, several models in order.

A checkpoint saved at update s gives the numbers that the callback logged at s: the probe is cut into the same batches,
and the checkpoints of a run's folder are read with the probe, the settings and the precision that its records state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from geomcallbacks.running.messages import printable
from geomcallbacks.trace.checkpoints.fetching import fetch_ahead
from geomcallbacks.trace.checkpoints.find import Checkpoint, find_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.loading import Reading
from geomcallbacks.trace.file import TraceFile, behaviour_out, default_out, locked, path_from
from geomcallbacks.trace.measuring import UnfitError, behaviour_lines, geometry_lines, loaded
from geomcallbacks.trace.plan import Measures, Plan, Probes, make_plan
from geomcallbacks.trace.recorded import read_recorded


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


@dataclass(frozen=True)
class _Output:
    """A file, the steps that stand in it, and what gives the lines of a checkpoint that does not."""

    file: TraceFile
    done: set[int]
    lines: Callable[[nn.Module, Checkpoint], list[dict[str, Any]]]


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
    recorded = read_recorded(Path(names[0])) if len(names) == 1 and Path(names[0]).is_dir() else None
    if recorded is not None and tokens_per_update is None:
        checkpoints = [replace(each, tokens=recorded.tokens.get(each.step, each.tokens)) for each in checkpoints]
    own = checkpoints[share[0] :: share[1]]
    with_tokenizer = list(dict.fromkeys([*own[:1], checkpoints[0], checkpoints[-1]]))
    plan = make_plan(with_tokenizer, hub, reading, recorded, settings=settings or {}, probes=probes, measures=measures)
    path = Path(out).expanduser() if out is not None else default_out(names)
    curve = {"models": [path_from(name, path) for name in names], "dtype": plan.reading.dtype}
    outputs = _outputs(plan, curve, path, checkpoints)
    todo = [each for each in own if any(each.step not in output.done for output in outputs)]
    folder, shown = outputs[0].file.spectra_folder, progress and share[0] == 0
    with locked(folder, shared=True) if share[1] > 1 else nullcontext():
        measured, failed = _measure(plan, todo, hub, outputs, several=len(names) > 1, total=len(own), shown=shown)
    if share[1] > 1 and failed:
        # A launcher ends all processes when one ends with an error: this one waits until the others have ended.
        with locked(folder):
            pass
    behaviour = outputs[1].file.path if len(outputs) > 1 else None
    return Summary(path, behaviour, measured, len(own) - len(todo), failed)


def _outputs(plan: Plan, curve: Mapping[str, Any], path: Path, checkpoints: list[Checkpoint]) -> list[_Output]:
    """The record file, and that of behaviour where it is measured."""
    file = TraceFile(path, plan.geometry_header(curve))
    file.spectra_folder.mkdir(exist_ok=True)
    found = [(file, partial(geometry_lines, plan, spectra=file.spectra_folder))]
    if plan.measures:
        found.append((TraceFile(behaviour_out(path), plan.behaviour_header(curve)), partial(behaviour_lines, plan)))
    placed = len(curve["models"]) > 1
    return [_Output(file, file.done(checkpoints, placed=placed), lines) for file, lines in found]


def _measure(
    plan: Plan, todo: list[Checkpoint], hub: Hub, outputs: list[_Output], *, several: bool, total: int, shown: bool
) -> tuple[list[str], dict[str, str]]:
    """Measure one checkpoint after another; returns which, and why others could not be."""
    from tqdm import tqdm

    measured: list[str] = []
    failed: dict[str, str] = {}
    known_to_fit = several or all(output.done for output in outputs)
    before = total - len(todo)
    with tqdm(total=total, initial=before, unit="checkpoint", disable=None if shown else True) as bar:
        for checkpoint, fetched in fetch_ahead(todo, hub, evict=plan.reading.evict):
            bar.set_description(checkpoint.revision)
            try:
                with loaded(plan, checkpoint, fetched.result()) as model:
                    for output in outputs:
                        if checkpoint.step not in output.done:
                            output.file.add(checkpoint, output.lines(model, checkpoint))
                measured.append(str(checkpoint))
            except Exception as error:
                if isinstance(error, UnfitError) and not (known_to_fit or measured):
                    raise  # nor will it fit the others; of several models each may be another
                reason = failed[str(checkpoint)] = printable(f"{type(error).__name__}: {error}")
                outputs[0].file.skip(checkpoint, reason)
                tqdm.write(f"geomcallbacks trace: {checkpoint} was not measured ({reason})", file=sys.stderr)
            bar.update()
    return measured, failed
