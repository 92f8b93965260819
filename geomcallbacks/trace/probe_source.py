"""What `--probe` names: a file of text, a data set on the hub, a saved ProbeSet, or the offline text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomcallbacks.probe import ProbeSet
from geomcallbacks.probing.offline import cut_texts, held_out_texts
from geomcallbacks.trace.rows import hub_rows, jsonl_rows

_LABEL = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")
#: Characters a token is taken to have at most when long documents are cut into texts of a probe's length.
_CHARACTERS = 4
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

    Raises:
        ValueError: rows or lengths contradict each other.
    """

    source: str = OFFLINE
    rows: int = 1024
    length: int = 128
    min_length: int = 32
    column: str = "text"
    config: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"--probe-rows {self.rows} is an empty probe: give a positive number")
        if not 2 <= self.min_length <= self.length:
            raise ValueError(
                f"--probe-length {self.length} is below {max(2, self.min_length)}, the tokens that a text must have"
            )

    @property
    def saved(self) -> bool:
        """Whether it is a saved ProbeSet, which needs no tokenizer."""
        return self.source.endswith(".safetensors")

    def build(self, tokenizer: Any) -> ProbeSet:
        """The probe.

        Args:
            tokenizer: the model's; not used by a saved ProbeSet.

        Raises:
            ValueError: no such file or data set, no such column, or too few texts that are long enough.
        """
        if self.saved:
            if not Path(self.source).is_file():
                raise ValueError(f"--probe {self.source}: there is no such file")
            return ProbeSet.load(self.source)
        try:
            return ProbeSet.from_texts(
                self._texts(), tokenizer, size=self.rows, max_length=self.length, min_length=self.min_length
            )
        except ValueError as error:
            raise ValueError(f"--probe {self.source} with --probe-rows {self.rows}: {error}") from error

    def _texts(self) -> Sequence[str] | Iterator[str]:
        """A list, which is visited in a seeded order, or a stream, which is read no further than needed."""
        path = Path(self.source)
        if self.source == OFFLINE:
            return cut_texts(held_out_texts(), _CHARACTERS * self.length)
        if path.suffix in (".txt", ".jsonl", ".parquet"):
            if not path.is_file():
                raise ValueError("there is no such file")
            if path.suffix == ".txt":
                return cut_texts([path.read_text(encoding="utf-8-sig")], _CHARACTERS * self.length)
            return self._jsonl(path) if path.suffix == ".jsonl" else self._parquet(path)
        if path.is_file():
            raise ValueError("is of no kind that is read: give .txt, .jsonl, .parquet or a saved probe, .safetensors")
        return self._streamed()

    def _jsonl(self, path: Path) -> Iterator[str]:
        for number, row in jsonl_rows(path):
            if not isinstance(row, dict) or self.column not in row:
                has = sorted(row) if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"line {number} has no column {self.column!r} (--probe-column): it has {has}")
            yield self._text(row[self.column], f"line {number}")

    def _parquet(self, path: Path) -> Iterator[str]:
        try:
            import pyarrow.parquet  # type: ignore[import-untyped]
        except ImportError as error:
            raise ValueError("a Parquet file needs pyarrow: pip install pyarrow") from error
        number = 0
        try:
            file = pyarrow.parquet.ParquetFile(path)
            if self.column not in file.schema_arrow.names:
                raise ValueError(
                    f"there is no column {self.column!r} (--probe-column): it has {file.schema_arrow.names}"
                )
            for batch in file.iter_batches(batch_size=256, columns=[self.column]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield self._text(text, f"row {number}")
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"no Parquet file, or damaged behind row {number}: {error}") from error

    def _streamed(self) -> Iterator[str]:
        rows = hub_rows(self.source, self.config, split=self.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            if self.column not in row:
                raise ValueError(f"there is no column {self.column!r} (--probe-column): it has {sorted(row)}")
            yield self._text(row[self.column], f"row {number}")

    def _text(self, value: Any, where: str) -> str:
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise ValueError(f"{where}: column {self.column!r} (--probe-column) holds a {kind}, not a text")
        return value or ""


#: Li et al. 2025, table 3: 15,000 texts of FineWeb's sample-10BT, at most 512 tokens.
PAPER = ProbeSource("HuggingFaceFW/fineweb", rows=15_000, length=512, config="sample-10BT")


def labelled(given: Sequence[str], option: str = "probe") -> dict[str, str]:
    """Sources by label, of `[LABEL=]SOURCE` each. Without labels, one is called as the option, several by their names.

    Raises:
        ValueError: a label stands twice.
    """
    found: dict[str, str] = {}
    for text in given:
        match = None if Path(text).exists() else _LABEL.fullmatch(text)
        if match:
            label, source = match[1], match[2]
        else:
            label, source = (option if len(given) == 1 else Path(text).stem), text
        if label in found:
            raise ValueError(
                f"--{option} {text}: there are two of the label {label!r}; give each its own, LABEL=SOURCE"
            )
        found[label] = source
    return found
