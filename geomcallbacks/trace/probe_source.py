"""What `--probe` names: a file of text, a data set on the hub, a saved ProbeSet, or the offline text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.columns import text_of
from geomcallbacks.probing.offline import held_out_texts
from geomcallbacks.probing.pieces import FilePieces, cut_texts
from geomcallbacks.trace.rows import hub_rows, jsonl_rows, parquet_rows

_LABEL = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")
#: Characters a token is taken to have at most when long documents are cut into texts of a probe's length.
_CHARACTERS = 4
_SUFFIXES = (".txt", ".jsonl", ".parquet", ".safetensors")
OFFLINE = "offline"


@dataclass(frozen=True)
class ProbeSource:
    """A probe that is still text, or still a file.

    Attributes:
        source: `*.txt` (cut into pieces at line ends), `*.jsonl` or `*.parquet` (a row is a text), `*.safetensors` (a
            saved ProbeSet, taken as it is), a hub data set or a folder of its files (streamed), or "offline": Python's
            own standard library without what the recipes train on; another Python version gives another probe.
        rows: rows of the probe.
        length: tokens to which a row is cut.
        min_length: texts of fewer tokens are passed over.
        column: column of the texts.
        config, split: of a hub data set.
    """

    source: str = OFFLINE
    rows: int = 1024
    length: int = 128
    min_length: int = 32
    column: str = "text"
    config: str | None = None
    split: str = "train"

    @property
    def saved(self) -> bool:
        """Whether it is a saved ProbeSet, which needs no tokenizer."""
        return self.source.endswith(".safetensors")

    def build(self, tokenizer: Any) -> ProbeSet:
        """Build the probe.

        Args:
            tokenizer: the model's; not used by a saved ProbeSet.

        Raises:
            ValueError: no such file or data set, no such column, too few texts that are long enough, or lengths that
                contradict each other.
        """
        path = Path(self.source).expanduser()
        if path.suffix in _SUFFIXES and not path.is_file():
            raise ValueError(f"--probe {self.source}: there is no such file")
        if self.saved:
            return ProbeSet.load(path)
        try:
            return ProbeSet.from_texts(
                self._texts(path), tokenizer, size=self.rows, max_length=self.length, min_length=self.min_length
            )
        except ValueError as error:
            raise ValueError(f"--probe {self.source} with --probe-rows {self.rows}: {error}") from error

    def _texts(self, path: Path) -> Iterable[str | None]:
        """Return a list, which is visited in a seeded order, or a stream, which is read no further than needed."""
        if self.source == OFFLINE:
            return cut_texts(held_out_texts(), _CHARACTERS * self.length)
        if path.suffix == ".txt":
            return FilePieces(path, _CHARACTERS * self.length)
        if path.suffix == ".jsonl":
            return self._column(jsonl_rows(path), "line")
        if path.suffix == ".parquet":
            return self._column(parquet_rows(path, self.column), "row")
        if path.is_file():
            raise ValueError(f"is of no kind that is read: give one of {', '.join(_SUFFIXES)}")
        rows = hub_rows(os.path.expanduser(self.source), self.config, split=self.split, streaming=True)
        return self._column(enumerate(rows, start=1), "row")

    def _column(self, rows: Iterable[tuple[int, dict[str, Any]]], unit: str) -> Iterator[str | None]:
        """Give each row's text or None; rows are numbered, and called a line or a row in messages."""
        for number, row in rows:
            if self.column not in row:
                raise ValueError(f"{unit} {number} has no column {self.column!r} (--probe-column), but {sorted(row)}")
            try:
                yield text_of(row[self.column], f"{unit} {number}: column {self.column!r} (--probe-column) holds")
            except TypeError as error:
                raise ValueError(str(error)) from error


#: Li et al. 2025, table 3: 15,000 texts of FineWeb's sample-10BT, at most 512 tokens.
PAPER = ProbeSource("HuggingFaceFW/fineweb", rows=15_000, length=512, config="sample-10BT")


def labelled(given: Sequence[str], option: str = "probe") -> dict[str, str]:
    """Return sources by label, of `[LABEL=]SOURCE` each.

    Without labels, one is called as the option, several by their names.

    Raises:
        ValueError: a label stands twice.
    """
    found: dict[str, str] = {}
    for text in given:
        match = None if Path(text).exists() else _LABEL.fullmatch(text)
        label = match[1] if match else option if len(given) == 1 else Path(text).stem
        if label in found:
            raise ValueError(f"--{option} {text}: there are two of the label {label!r}; give each its own LABEL=SOURCE")
        found[label] = match[2] if match else text
    return found
