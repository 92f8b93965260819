"""RecordWriter: the file that a run leaves behind, written so that it can be read after every kind of end."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from geomcallbacks.probe import ProbeSet
from geomcallbacks.record import SCHEMA, GeometryRecord, numbered, probes_folder, read_lines, run_files, spectra_folder
from geomcallbacks.running.files import replace_file

#: Writers of this process by file. A run that was interrupted (a notebook's stop button) still holds its lock.
_OPEN: weakref.WeakValueDictionary[Path, RecordWriter] = weakref.WeakValueDictionary()
#: Lines that wait for a disk that is full. One is a few hundred bytes.
_MOST_WAITING = 10_000


class RecordWriter:
    """Append to a run's record file, and keep it locked against other writers for as long as it is open.

    A line that cannot be written raises, and is tried again before the next.

    Args:
        path: where the file is to be. Where another run's file stands, the next free name (`geometry-2.jsonl`).
        step: update at which this process starts: 0, or that of the checkpoint it resumed from.
        header: settings, versions and probes; the header line, which `flush` writes.
        run_id: of the run that goes on in its file; None: a new run begins, whatever `step` is.

    Attributes:
        path: the file.
        run_id: names the run.
        goes_on: whether the file holds what the run has recorded before.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: str | Path, step: int, header: Mapping[str, Any], run_id: str | None = None) -> None:
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self.path, self._file, self.goes_on = _open_locked(Path(path), run_id)
        _OPEN[self.path.resolve()] = self
        self._waiting: deque[bytes] = deque([b"\n"] if _is_torn(self.path) else [], maxlen=_MOST_WAITING)
        resumed_from = step if step > 0 else None
        begin = {"kind": "header", "schema": SCHEMA, "run_id": self.run_id, "resumed_from": resumed_from}
        self._waiting.append(_line({**begin, **header}))

    def write(self, *lines: Mapping[str, Any]) -> None:
        """Append measurements, each a flat mapping that has its `step` and no NaN."""
        for line in lines:
            self._append({"kind": "record", **line})

    def skip(self, step: int, reason: str, /, **more: Any) -> None:
        """Append that a measurement which was due was not taken or failed, and why."""
        self._append({"kind": "skip", "step": step, "reason": reason, **more})

    def keep_spectra(self, step: int, records: Sequence[GeometryRecord]) -> str | None:
        """Keep the eigenvalues of one measurement beside the file; see `write_spectra`."""
        return write_spectra(spectra_folder(self.path), step, records)

    def keep_probes(self, probes: Iterable[ProbeSet]) -> None:
        """Keep the probes beside the file: `geomcallbacks trace` measures the run's checkpoints on them."""
        folder = probes_folder(self.path)
        folder.mkdir(exist_ok=True)
        for probe in probes:
            file = folder / f"{probe.fingerprint}.safetensors"
            if not file.is_file():
                probe.save(file)

    def flush(self) -> None:
        """Write what waits: the header, and lines that could not be written before."""
        while self._waiting:
            _append(self._file, self._waiting[0])
            self._waiting.popleft()

    def close(self) -> None:
        """Write what waits, close the file and release its lock. Closing twice is harmless."""
        try:
            if not self._file.closed:
                self.flush()
        finally:
            self._file.close()

    def forget(self) -> None:
        """Let go of the file without a word: in a forked process, which would hold the lock when this one has ended."""
        self._waiting.clear()
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._waiting.append(_line(line))
        self.flush()


def _forget_all() -> None:
    for writer in list(_OPEN.values()):
        writer.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_all)


def write_spectra(folder: Path, step: int, records: Sequence[GeometryRecord]) -> str | None:
    """Write the eigenvalues of one measurement to a file in `folder`.

    Returns:
        The file, relative to the folder's parent; None where no record has eigenvalues.
    """
    found = {record.curve: record.eigenvalues for record in records if record.eigenvalues is not None}
    if not found:
        return None
    folder.mkdir(exist_ok=True)
    target = folder / f"step-{step:09d}.safetensors"
    # float32 keeps seven digits of each eigenvalue in half the space; the metrics are not computed from it.
    replace_file(target, save({key: values.to("cpu", torch.float32).contiguous() for key, values in found.items()}))
    return f"{folder.name}/{target.name}"


def record_lines(records: Iterable[GeometryRecord], spectra: str | None) -> list[dict[str, Any]]:
    """Return the lines of one measurement, each with the file of its eigenvalues and the key in it."""
    lines = []
    for record in records:
        kept = spectra is not None and record.eigenvalues is not None
        lines.append(record.to_dict() | {"spectrum": [spectra, record.curve] if kept else None})
    return lines


def _open_locked(path: Path, run_id: str | None) -> tuple[Path, Any, bool]:
    """Open the file of the run that goes on, or the next free name: a new run, or one that has left no file here.

    Returns:
        The path, the file, and whether it is that of the run that goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for candidate in reversed(run_files(path)) if run_id is not None else ():
        if candidate.exists() and _holds(candidate, run_id):
            if candidate.resolve() in _OPEN:
                _OPEN[candidate.resolve()].close()
            file = candidate.open("ab", buffering=0)
            if _lock(file):
                return candidate, file, True
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
            return candidate, file, False
        file.close()


def _holds(path: Path, run_id: str | None) -> bool:
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
    """Write all of `data` or nothing: where the disk is full, half a line must not stand before what follows later."""
    end = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        with contextlib.suppress(OSError):  # not a file that has an end, such as /dev/full
            os.ftruncate(file.fileno(), end)
        raise


def _line(line: Mapping[str, Any]) -> bytes:
    text = json.dumps(line, allow_nan=False, ensure_ascii=False, default=_plain) + "\n"
    return text.encode("utf-8", "replace")  # half of a surrogate pair, in the words of an error


def _plain(value: Any) -> Any:
    """Return NumPy's numbers and tensors, as settings may hold them, in what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _is_torn(path: Path) -> bool:
    """Whether a killed writer has left an unfinished line, which is to be ended."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
