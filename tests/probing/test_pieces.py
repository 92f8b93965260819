"""Pieces of a text file: those of its whole text, of whatever line ends."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hostile import refused

from geomcallbacks.probing.pieces import FilePieces, cut_texts

PARTS = ["a", "word ", "é", "\u2028", "\U0001f600", "\n", "\r\n", "\r", "\v", "\x85", "\f", "\n\n", "x" * 30]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_pieces_of_a_file_are_those_of_its_text(tmp_path: Path, mark: bytes) -> None:
    """Read whole by Python itself, as text."""
    draw, file, found = random.Random(0), tmp_path / "t.txt", 0
    for characters in (1, 2, 7, 40, 500):
        for _ in range(60):
            content = "".join(draw.choices(PARTS, k=draw.randrange(120)))
            file.write_bytes(mark + content.encode())
            wanted = cut_texts([file.read_text(encoding="utf-8-sig")], characters)
            assert list(FilePieces(file, characters)) == wanted
            found += len(wanted)
    assert found > 4000


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("d\u00e9j\u00e0 vu\n".encode("latin-1"))
    with pytest.raises(ValueError, match="utf-8") as caught:
        FilePieces(tmp_path / "t.txt", 4)
    refused(caught.value, "utf-8")
