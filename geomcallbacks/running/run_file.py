"""The record file of one run as its monitor holds it: what cannot be written is told once, and ends no run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from geomcallbacks.running.messages import OnError, WarnOnce, reason_of
from geomcallbacks.running.processes import rank
from geomcallbacks.running.record_writer import RecordWriter

_P = ParamSpec("_P")
_T = TypeVar("_T")


def place_of(path: str | Path | None) -> Path | None:
    """Return where a record file is to be; None where none is asked for. Raise ``ValueError`` for a folder."""
    place = None if path is None else Path(path).expanduser()
    if place is not None and place.is_dir():
        example = str(place / "geometry.jsonl")
        raise ValueError(f"path={str(path)!r} is a folder: give a file, such as {example!r}")
    return place


class RunFile:
    """A record file, or none: none was asked for, this is not the first rank, or it cannot be opened.

    Args:
        on_error: "raise" raises what is otherwise told.
        warn: tells it.

    Attributes:
        path: where the file is, or was to be; None where none was asked for.
        run_id: names the run, also after it is resumed; None as long as there is no file.
        past: the file that holds what the run has recorded before; None for a new run.
    """

    def __init__(self, on_error: OnError, warn: WarnOnce) -> None:
        self.path: Path | None = None
        self.run_id: str | None = None
        self.past: Path | None = None
        self._on_error, self._warn = on_error, warn
        self._writer: RecordWriter | None = None

    def open(
        self, path: Path | None, step: int, header: Mapping[str, Any], run_id: str | None, known: Path | None
    ) -> None:
        """Open the file as `RecordWriter` does, and say so where it is not the one that was asked for.

        `known` is the run's file by its checkpoint, which may lie elsewhere.
        """
        self.path, self.run_id = path, run_id
        if path is None or rank() != 0:
            return
        with self._surviving():
            self._open(path, step, header, run_id, known)
        self.keep(RecordWriter.flush)

    def keep(self, how: Callable[Concatenate[RecordWriter, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Have a method of the writer keep something, where there is one; return what it returns, None if it failed."""
        if self._writer is not None:
            with self._surviving():
                return how(self._writer, *args, **kwargs)
        return None

    def _open(self, path: Path, step: int, header: Mapping[str, Any], run_id: str | None, known: Path | None) -> None:
        self._writer = RecordWriter(path, step, header, run_id)
        self.run_id, self.path = self._writer.run_id, self._writer.path
        self.past = self.path if self._writer.goes_on else known
        if self.path != path and not self._writer.goes_on:
            self._warn(str(self.path), f"{path} is of another run or callback: this one is recorded in {self.path}")

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._warn("file", f"{self.path} could not be written ({reason_of(error)}); training goes on without")
