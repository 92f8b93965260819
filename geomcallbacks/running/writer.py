"""RecordWriter: the file that a run leaves behind, written so that it can be read after every kind of end."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from geomcallbacks.record import SCHEMA, GeometryRecord, numbered, numbers, probes_folder, read_lines

#: Writers of this process by file. A run that was interrupted (a notebook's stop button) still holds its lock.
_OPEN: weakref.WeakValueDictionary[Path, RecordWriter] = weakref.WeakValueDictionary()


class RecordWriter:
    """Appends to a run's record file, which it keeps locked against other writers for as long as it is open.

    Args:
        path: where the file is to be. A run that starts at update 0 where a file stands, or that meets another
            writer, takes the next free name (`geometry-2.jsonl`).
        step: update at which this process starts: 0, or that of the checkpoint it resumed from.
        header: settings, versions and probes, written as the header line.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: str | Path, step: int, header: Mapping[str, Any], run_id: str | None = None) -> None:
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self.path, self._file = _open_locked(Path(path), step > 0, run_id)
        _OPEN[self.path.resolve()] = self
        _end_torn_line(self.path, self._file)
        self._write(
            {"kind": "header", "schema": SCHEMA, "run_id": self.run_id, "resumed_from": step if step > 0 else None}
            | dict(header)
        )

    @property
    def spectra_folder(self) -> Path:
        """Where the eigenspectra of this file's records are kept."""
        return self.path.with_name(f"{self.path.stem}-spectra")

    @property
    def probes_folder(self) -> Path:
        """Where the probes of this file's records are kept."""
        return probes_folder(self.path)

    def write(self, record: GeometryRecord | Mapping[str, Any]) -> None:
        """Append one record: a GeometryRecord, or any flat mapping that has its `step` and no NaN."""
        self._write({"kind": "record"} | dict(record.to_dict() if isinstance(record, GeometryRecord) else record))

    def skip(self, step: int, reason: str, about: Mapping[str, Any] = {}) -> None:
        """Append that a measurement which was due was not taken, why, and what else is to be said `about` it."""
        self._write({"kind": "skip", "step": step, "reason": reason} | dict(about))

    def write_spectra(self, step: int, spectra: Mapping[str, torch.Tensor]) -> str:
        """Keep the eigenvalues of one measurement, by "<probe>/<layer>"; returns the file, relative to the records."""
        return write_spectra(self.spectra_folder, step, spectra)

    def close(self) -> None:
        """Close the file and release its lock. Closing twice is harmless."""
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        _append(self._file, (json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_spectra(folder: Path, step: int, spectra: Mapping[str, torch.Tensor]) -> str:
    """Write the eigenvalues of one measurement to a file in `folder`; returns it, relative to the folder's parent."""
    folder.mkdir(exist_ok=True)
    target = folder / f"step-{step:09d}.safetensors"
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    # float32 keeps seven digits of each eigenvalue in half the space; the metrics are not computed from it.
    kept = {key: value.to("cpu", torch.float32).contiguous() for key, value in spectra.items()}
    scratch.write_bytes(save(kept))  # by Python, so that a full disk is an OSError
    scratch.replace(target)
    return f"{folder.name}/{target.name}"


def _open_locked(path: Path, resume: bool, run_id: str | None) -> tuple[Path, Any]:
    """The file of the run that goes on, or the next free name: a new run, or one that has left no file here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [numbered(path, number) for number in sorted(set(numbers(path)))]
    # A checkpoint that does not say which run it is of: the last file is the one that goes on.
    for candidate in reversed(names) if resume else ():
        if candidate.exists() and (run_id is None or _holds(candidate, run_id)):
            if run_id is not None and candidate.resolve() in _OPEN:
                _OPEN[candidate.resolve()].close()
            file = candidate.open("ab", buffering=0)
            if _lock(file):
                return candidate, file
            file.close()
    number = 1
    while True:
        candidate = numbered(path, number)
        number += 1
        if candidate.exists() and candidate.stat().st_size > 0:
            continue
        file = candidate.open("ab", buffering=0)
        # Another run may have begun the file between the look and the lock.
        if _lock(file) and file.tell() == 0:
            return candidate, file
        file.close()


def _holds(path: Path, run_id: str) -> bool:
    try:
        return any(line.get("run_id") == run_id for line in read_lines(path))
    except ValueError:
        return False


def _lock(file: Any) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows, where two writers are not kept apart
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True


def _append(file: Any, data: bytes) -> None:
    """All of `data` or nothing: where the disk is full, half a line must not stand before what follows later."""
    end = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        with contextlib.suppress(OSError):  # not a file that has an end, such as /dev/full
            os.ftruncate(file.fileno(), end)
        raise


def _end_torn_line(path: Path, file: Any) -> None:
    """Put what follows a killed writer's unfinished line onto a line of its own."""
    with path.open("rb") as existing:
        if existing.seek(0, os.SEEK_END) and existing.seek(-1, os.SEEK_END) >= 0 and existing.read(1) != b"\n":
            _append(file, b"\n")
