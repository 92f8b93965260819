"""The record file of a trace: that of a run, kept in the order of steps whatever was measured first.

One file for any number of processes. Each addition reads it, puts lines in, and replaces it whole under a lock of its
folder, so that it is complete and sorted at every moment, also after a kill.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geomcallbacks.record import SCHEMA, read_lines, spectra_folder
from geomcallbacks.running.files import replace_file
from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint

#: What a header says that must agree before a trace goes on; the versions may differ.
_SAME = ("trace", "settings", "probes", "measures")


class TraceFile:
    """A record file to which measurements of a curve are added in any order.

    Args:
        path: where it is, or is to be.
        header: what its header says: `trace`, `settings`, `probes`, `measures`, `versions`; what JSON holds.
        checkpoints: of the curve.

    Raises:
        ValueError: the file there is of another curve, other checkpoints, settings or probes; or its spectra would be
            written through a link.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], checkpoints: Sequence[Checkpoint]) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        if spectra_folder(self.path).is_symlink():
            raise ValueError(f"{spectra_folder(self.path)} is a link, which is not written through: give another --out")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        #: Steps whose measurements stand in the file.
        self.done = {line["step"] for line in self._begun()[1] if self._is_of(checkpoints, line)}

    def add(self, checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]]) -> None:
        """Put in all measurements of one checkpoint, in place of any that are there."""
        self._put(checkpoint, [{"kind": "record", **record} for record in records])
        self.done.add(checkpoint.step)

    def skip(self, checkpoint: Checkpoint, reason: str) -> None:
        """Put in why a checkpoint could not be measured, unless it is; goes when it is measured after all."""
        if checkpoint.step not in self.done:
            self._put(checkpoint, [{"kind": "skip", "step": checkpoint.step, "reason": reason}])

    def _put(self, checkpoint: Checkpoint, new: list[dict[str, Any]]) -> None:
        with locked(self.path.parent):
            headers, lines = self._begun()  # another trace may have begun it anew
            if not any(header.get("versions") == self.header.get("versions") for header in headers):
                run_id = headers[0]["run_id"] if headers else uuid.uuid4().hex[:12]
                begin = {"kind": "header", "schema": SCHEMA, "run_id": run_id, "resumed_from": None}
                headers.append(begin | self.header)
            kept = [line for line in lines if line["step"] != checkpoint.step]
            kept += [line | {"model": checkpoint.model, "revision": checkpoint.revision} for line in new]
            kept.sort(key=lambda line: int(line["step"]))
            text = "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in (*headers, *kept))
            replace_file(self.path, text.encode())

    def _begun(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return headers and other lines of the trace that goes on in the file."""
        text = f"{self.path} is no record file of a trace: give another --out"
        try:
            found = read_lines(self.path) if self.path.exists() else []
        except ValueError as error:
            raise ValueError(f"{text} ({error})") from error
        headers = [line for line in found if line.get("kind") == "header"]
        lines = [line for line in found if line.get("kind") != "header"]
        if not headers and self.path.exists() and self.path.stat().st_size > 0:
            raise ValueError(text)
        for header in headers:
            self._check_same(header)
        return headers, lines

    def _is_of(self, checkpoints: Sequence[Checkpoint], line: Mapping[str, Any]) -> bool:
        """Return whether a line is a measurement. Raise ``ValueError`` where it is of other checkpoints than these."""
        if line["kind"] != "record":
            return False
        step, revision = line["step"], line["revision"]
        clash = [each for each in checkpoints if (each.step == step) != (each.revision == revision)]
        if clash and not any(each.step == step and each.revision == revision for each in checkpoints):
            now = " and ".join(f"{each} stands at {each.step}" for each in clash)
            there = f"{self.path} has {line['model']}@{revision} at step {step}"
            raise ValueError(f"{there}, and now {now}: give the same revisions to go on with it, or another --out")
        return True

    def _check_same(self, header: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` where a header of the file speaks of another curve or of other ways to measure."""
        if "trace" not in header:
            raise ValueError(f"{self.path} is the record file of a training run: give another --out")
        for part in _SAME:
            before, now = (_without_remarks(each.get(part)) for each in (header, self.header))
            keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            if keys:
                changes = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
                there = f"{self.path} was begun with other {part}: {changes}"
                raise ValueError(f"{there}; give the same to go on with it, or another --out")


def _without_remarks(part: Any) -> dict[str, Any]:
    """Return what a header says of how the numbers came about, without what only helps to read them."""
    return {key: value for key, value in part.items() if key != "from_scratch"} if isinstance(part, dict) else {}


def default_out(models: Sequence[str]) -> Path:
    """Return where the records of these models go, unless the user says."""
    path = Path(models[0])
    if len(models) == 1 and path.exists():
        folder = path if path.is_dir() else path.parent
        return (folder.parent if folder.resolve().name == "checkpoints" else folder) / "geometry-trace.jsonl"
    names = [Path(model.partition("@")[0]).name for model in models]
    return Path("-to-".join(dict.fromkeys((names[0], names[-1]))) + "-geometry.jsonl")


def behaviour_out(out: Path) -> Path:
    """Return the file of the measures' numbers that goes with a record file."""
    stem = out.stem.replace("geometry", "behaviour") if "geometry" in out.stem else f"{out.stem}-behaviour"
    return out.with_name(stem + out.suffix)


def path_from(name: str, out: Path) -> str:
    """Return a hub name as it is, and a folder as the way to it from the record file: both move together.

    A run's `checkpoints` are the same curve as the run.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return name
    path = path.resolve()
    path = path.parent if path.name == "checkpoints" else path
    return Path(os.path.relpath(path, out.parent.resolve())).as_posix()


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an operating system's lock of a folder, which ends with the process; wait for it as long as it takes.

    Where the system or the file system knows none, nothing is held: then run one process at a time.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield
        return
    try:
        with suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
