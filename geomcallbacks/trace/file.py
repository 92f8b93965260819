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

from geomcallbacks.record import SCHEMA, read_lines, read_records
from geomcallbacks.running.files import replace_file
from geomcallbacks.trace.checkpoints.find import Checkpoint

#: What a header says that must agree before a trace goes on; the versions may differ.
_SAME = ("trace", "settings", "probes", "measures")


class TraceFile:
    """A record file to which measurements of a curve are added in any order.

    Args:
        path: where it is, or is to be.
        header: what its header says: `trace`, `settings`, `probes`, `measures`, `versions`; what JSON holds.

    Raises:
        ValueError: the file there is of another curve, other settings or other probes; or its spectra would be
            written through a link.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        if self.spectra_folder.is_symlink():
            raise ValueError(
                f"{self.spectra_folder} is a link, and no spectra are written through it: give another --out"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            headers, lines = self._begun()
            if not any(header.get("versions") == self.header.get("versions") for header in headers):
                run_id = headers[0]["run_id"] if headers else uuid.uuid4().hex[:12]
                new = {"kind": "header", "schema": SCHEMA, "run_id": run_id, "resumed_from": None}
                self._replace([*headers, new | self.header], lines)

    @property
    def spectra_folder(self) -> Path:
        """Where the eigenspectra of this file's records are kept."""
        return self.path.with_name(f"{self.path.stem}-spectra")

    def done(self, checkpoints: Sequence[Checkpoint], *, placed: bool = False) -> set[int]:
        """Steps whose measurements stand in the file.

        Args:
            checkpoints: of the curve.
            placed: they are of several models and stand at their places, so that a revision may come twice.

        Raises:
            ValueError: they are of other checkpoints than these.
        """
        at = {} if placed else {each.revision: each.step for each in checkpoints}
        steps = {each.step: each for each in checkpoints}
        found = set()
        for record in read_records(self.path):
            revision, step = record["revision"], record["step"]
            other = steps.get(step)
            if at.get(revision, step) != step or (other is not None and other.revision != revision):
                now = f"it stands at {at[revision]}" if revision in at else f"{other} stands there"
                raise ValueError(
                    f"{self.path} has {record['model']}@{revision} at step {step}, and now {now}: give the same"
                    " revisions to go on with it, or another --out"
                )
            found.add(step)
        return found

    def add(self, checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]]) -> None:
        """Put in all measurements of one checkpoint, in place of any that are there."""
        self._put(checkpoint, [{"kind": "record"} | dict(record) for record in records])

    def skip(self, checkpoint: Checkpoint, reason: str) -> None:
        """Put in why a checkpoint could not be measured, unless it is; goes when it is measured after all."""
        self._put(checkpoint, [{"kind": "skip", "step": checkpoint.step, "reason": reason}])

    def _put(self, checkpoint: Checkpoint, new: list[dict[str, Any]]) -> None:
        with locked(self.path.parent):
            headers, lines = self._read()
            for header in headers:  # another trace may have begun it anew
                self._check_same(header)
            here = [line["kind"] for line in lines if line["step"] == checkpoint.step]
            if "record" in here and new[0]["kind"] == "skip":
                return
            new = [line | {"model": checkpoint.model, "revision": checkpoint.revision} for line in new]
            kept = [line for line in lines if line["step"] != checkpoint.step]
            self._replace(headers, sorted(kept + new, key=lambda line: int(line["step"])))

    def _begun(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Headers and lines of the trace that goes on in the file."""
        try:
            headers, lines = self._read()
        except ValueError as error:
            raise ValueError(f"{self.path} is no record file of a trace: give another --out ({error})") from error
        if not headers and self.path.exists() and self.path.stat().st_size > 0:
            raise ValueError(f"{self.path} is no record file of a trace: give another --out")
        try:
            for header in headers:
                self._check_same(header)
        except ValueError:
            if any(line.get("kind") == "record" for line in lines) or not all("trace" in each for each in headers):
                raise
            return [], []  # nothing was measured in that way: the first try was mistaken
        return headers, lines

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        lines = read_lines(self.path) if self.path.exists() else []
        return [x for x in lines if x.get("kind") == "header"], [x for x in lines if x.get("kind") != "header"]

    def _replace(self, headers: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in (*headers, *lines))
        replace_file(self.path, text.encode())

    def _check_same(self, header: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` where a header of the file speaks of another curve or of other ways to measure."""
        if "trace" not in header:
            raise ValueError(f"{self.path} is the record file of a training run: give another --out")
        for part in _SAME:
            before, now = (_without_remarks(each.get(part)) for each in (header, self.header))
            keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            if keys:
                changes = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
                raise ValueError(
                    f"{self.path} was begun with other {part}: {changes}; give the same to go on with it, or another"
                    " --out"
                )


def _without_remarks(part: Any) -> dict[str, Any]:
    """What a header says of how the numbers came about, without what only helps to read them."""
    return {key: value for key, value in part.items() if key != "from_scratch"} if isinstance(part, dict) else {}


def default_out(models: Sequence[str]) -> Path:
    """Where the records of these models go, unless the user says."""
    path = Path(models[0])
    if len(models) == 1 and path.exists():
        folder = path if path.is_dir() else path.parent
        return (folder.parent if folder.resolve().name == "checkpoints" else folder) / "geometry-trace.jsonl"
    names = [Path(model.partition("@")[0]).name for model in models]
    return Path("-to-".join(dict.fromkeys((names[0], names[-1]))) + "-geometry.jsonl")


def behaviour_out(out: Path) -> Path:
    """The file of the measures' numbers that goes with a record file."""
    stem = out.stem.replace("geometry", "behaviour") if "geometry" in out.stem else f"{out.stem}-behaviour"
    return out.with_name(stem + out.suffix)


def path_from(name: str, out: Path) -> str:
    """A model by its hub name, a folder by the way to it from the record file: both move together.

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
