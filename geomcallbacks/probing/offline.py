"""Text that every machine with Python has: the source of its standard library, dealt whole to parts by file name.

*Documents are split before anything is cut from them.* A document goes to one part by a hash of its name, so
neither the order of a listing nor the other documents decide where it goes. Near-duplicates go before the
split: otherwise a copy of a pretraining file could stand in the probe or in a test part.

The library differs between Python versions, and with it every probe that is cut from it: compare by fingerprint.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS = {"pretrain": 0.50, "sft": 0.18, "preference": 0.12, "probe": 0.07, "id_test": 0.07, "ood_test": 0.06}
"""The parts of a corpus and the share of the documents that each one gets."""

OTHER_DOMAIN = frozenset({"idlelib", "tkinter", "turtle.py", "turtledemo"})
"""Graphical interfaces: what of the standard library makes up ``ood_test``, and stands in no other part."""

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})

_SHINGLE_LINES = 5
_DUPLICATE = 0.5  # share of a document's shingles


@dataclass(frozen=True)
class Document:
    """One text and the name by which it is split.

    Attributes:
        path: A name that is unique in the corpus: for a file its path below the root, for a row its hash.
        text: The whole text.
    """

    path: str
    text: str


def python_documents(root: str | Path | None = None) -> list[Document]:
    """Read every ``*.py`` file below a folder, without tests and installed packages, in the order of their paths.

    Args:
        root: The folder; None: the standard library of the running Python, about 12 MB.

    Raises:
        ValueError: There is no such file with text.
    """
    folder = Path(root or sysconfig.get_path("stdlib"))
    documents = [
        Document(path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8", errors="replace"))
        for path in sorted(_python_files(folder))
    ]
    if not any(document.text.strip() for document in documents):
        raise ValueError(f"root={str(folder)!r} holds no *.py file with text; give a folder that does")
    return documents


def held_out_texts() -> list[str]:
    """Return the texts of the standard library that no stage of the recipes trains on."""
    return [
        document.text
        for document, duplicate in near_duplicates(python_documents())
        if not duplicate and document.text.strip() and part_of(document.path, OTHER_DOMAIN) in ("probe", "id_test")
    ]


def part_of(path: str, other_domain: frozenset[str] = frozenset()) -> str:
    """Return the part of a document: its name alone decides, in proportion to the shares in ``PARTS``."""
    if path.split("/")[0] in other_domain:
        return "ood_test"
    shares = {part: share for part, share in PARTS.items() if part != "ood_test" or not other_domain}
    position = int(hashlib.sha256(path.encode()).hexdigest()[:13], 16) / 16**13 * sum(shares.values())
    for part, share in shares.items():
        position -= share
        if position < 0:
            return part
    return list(shares)[-1]


def near_duplicates(documents: Iterable[Document]) -> Iterator[tuple[Document, bool]]:
    """Say of each document whether most of it was in the documents kept before it.

    A shingle is a run of five consecutive lines, stripped, blank ones left out; a shorter document is one shingle. A
    document is a near-duplicate if more than half of its distinct shingles were seen. Exact shingles find what standard
    libraries have, copies with a changed header; they do not find reworded prose.
    """
    seen: set[bytes] = set()
    for document in documents:
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        runs = ("\n".join(lines[at : at + _SHINGLE_LINES]) for at in range(max(1, len(lines) - _SHINGLE_LINES + 1)))
        shingles = {hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs}
        duplicate = len(shingles & seen) > _DUPLICATE * len(shingles)
        if not duplicate:
            seen |= shingles
        yield document, duplicate


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, children, files in os.walk(folder):
        children[:] = [child for child in children if child not in SKIPPED_FOLDERS]  # os.walk does not enter them
        yield from (Path(parent, file) for file in files if file.endswith(".py"))
