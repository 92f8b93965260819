"""Long documents as texts of a probe's length: cut at line ends, in memory or in a file of any size."""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_ENDS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
_LINE = re.compile(f"[^{_ENDS}]*(?:\r\n|[{_ENDS}])|[^{_ENDS}]+")


def cut_texts(texts: Iterable[str], characters: int) -> list[str]:
    """Cut texts at line ends into pieces of at least so many characters that do not overlap; shorter ends go."""
    pieces = []
    for text in texts:
        piece = ""
        for line in _LINE.finditer(text):  # not `splitlines`: 100 MB of short lines would take gigabytes
            piece += line[0]
            if len(piece) >= characters:
                pieces.append(piece)
                piece = ""
    return pieces


class FilePieces(Sequence[Any]):
    """The pieces that `cut_texts` makes of the text of a UTF-8 file, each read when it is asked for.

    The file is read once, a line at a time, to find where they lie: 8 bytes a piece are kept.

    Raises:
        UnicodeDecodeError: the file is no UTF-8.
    """

    def __init__(self, path: Path, characters: int) -> None:
        self._path = path
        with path.open("rb") as file:
            at = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(at)
            self._bounds = array("q", [at])
            held = 0
            for raw in file:
                for line in _LINE.findall(raw.decode()):
                    at += len(line.encode())
                    held += len(line) - line.endswith("\r\n")  # read as one
                    if held >= characters:
                        self._bounds.append(at)
                        held = 0

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: Any) -> Any:
        start, end = self._bounds[index], self._bounds[index + 1]
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start).decode().replace("\r\n", "\n").replace("\r", "\n")
