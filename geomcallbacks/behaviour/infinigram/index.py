"""An ∞-gram index over a run's own training tokens, by the package infini-gram.

An ∞-gram model (Liu et al. 2024, arXiv 2401.17377) gives the next token the share that it has among the continuations
of the longest end of the context that occurs in the text at all.

Every index is checked against brute force before it is used: see `infinigram_build` for what can go wrong.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomcallbacks.behaviour.infinigram.build import (
    brute_count,
    check_parts,
    file_sha256,
    sort_suffixes,
    token_dtype,
    token_stream,
)

_FORMAT = "geomcallbacks.infinigram.v1"
_CHECKS = 100
#: What the package looks for in the path of a file.
_FILES = ("tokenized", "table", "offset", "metadata", "metaoff", "unigram")


class InfiniGram(Protocol):
    """What can tell the ∞-gram probability of each token of an answer.

    Attributes:
        source: which text and index it counts in.
    """

    source: str

    def probabilities(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """Probability of each token of the answer, and how many tokens before it were found in the text."""


class InfiniGramIndex:
    """The ∞-gram index in a folder. Make one with `build`; `open` reads it again.

    Args:
        folder: where `build` wrote.

    Attributes:
        tokens: tokens of the text, a separator before each document included.
        fingerprint: 16 hexadecimal digits of the SHA-256 over them.
        source: what `InfiniGram` asks for.

    Raises:
        ImportError: the package infini-gram is missing.
        FileNotFoundError, ValueError: there is no whole index in the folder, or its files were changed.
    """

    def __init__(self, folder: str | Path) -> None:
        engine = _engine_module()
        folder = Path(folder)
        about = _read_about(folder)
        self.tokens: int = about["tokens"]
        self.fingerprint: str = about["fingerprint"]
        self.source = f"infini-gram index of {self.tokens} tokens, {self.fingerprint}"
        self._vocab_size: int = about["vocab_size"]
        self._dtype = token_dtype(self._vocab_size)
        self._engine = _opened(engine, folder, self._dtype.itemsize)

    @classmethod
    def open(cls, folder: str | Path) -> InfiniGramIndex:
        """The index that `build` left in `folder`."""
        return cls(folder)

    @classmethod
    def build(
        cls,
        ids: ArrayLike | Sequence[Sequence[int]],
        folder: str | Path,
        *,
        vocab_size: int,
        parts: int = 1,
        checks: int = _CHECKS,
    ) -> InfiniGramIndex:
        """Index token ids, and check its counts against brute force.

        Args:
            ids: one dimension of token ids, or a list of documents, between which no n-gram reaches.
            folder: where to write; an index that stands there is replaced.
            vocab_size: all ids are below it; up to 65,535 a token takes two bytes, beyond that four.
            parts: how many parts of the text are sorted one after the other, each of at least 200,000 bytes. More need
                less memory.
            checks: n-grams whose counts are compared.

        Raises:
            ImportError: the package infini-gram is missing.
            ValueError: there are no ids or they do not fit `vocab_size`, or the text is too small for so many parts.
            RuntimeError: the package's builder failed, or the counts of its index are not those of the text.
        """
        engine = _engine_module()
        dtype = token_dtype(vocab_size)
        stream, starts = token_stream(ids, vocab_size, dtype)
        check_parts(stream, parts)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "about.json").unlink(missing_ok=True)  # until the new index is whole
        stream.tofile(folder / "tokenized.0")
        (starts * dtype.itemsize).astype("<u8").tofile(folder / "offset.0")
        sort_suffixes(Path(engine.__file__).parent / "rust_indexing", folder, dtype.itemsize, parts)
        about = {
            "format": _FORMAT,
            "tokens": len(stream),
            "documents": len(starts),
            "vocab_size": vocab_size,
            "fingerprint": file_sha256(folder / "tokenized.0")[:16],
            "table_sha256": file_sha256(folder / "table.0"),
            "checks": checks,
        }
        (folder / "about.json").write_text(json.dumps(about, indent=1))
        index = cls(folder)
        try:
            index.check(stream, checks)
        except RuntimeError:
            (folder / "about.json").unlink()
            raise
        return index

    def count(self, ids: Sequence[int]) -> int:
        """How often these tokens stand in the text one after the other; all tokens of the text where `ids` is empty."""
        return int(_answer(self._engine.count(self._stored(ids)))["count"])

    def probabilities(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """∞-gram probability of each token of an answer.

        Args:
            prompt_ids: tokens before the answer; may be empty.
            answer_ids: tokens of the answer, each predicted from all before it.

        Returns:
            For each token of the answer its probability, 0 where it never follows there, and the length of the
            longest end of its context that occurs in the text.

        Raises:
            ValueError: an id is not within the vocabulary.
        """
        found: list[float] = []
        lengths: list[int] = []
        context, answer = self._stored(prompt_ids), self._stored(answer_ids)
        for token in answer:
            result = _answer(self._engine.infgram_prob(context, token))
            found.append(float(result["prob"]))
            lengths.append(int(result["suffix_len"]))
            # Whatever is found for the next token is at most one token longer: what lies before cannot matter.
            context = [*context[len(context) - lengths[-1] :], token]
        return found, lengths

    def check(self, stream: NDArray[Any], checks: int = _CHECKS, seed: int = 0) -> None:
        """Compare the counts of n-grams of 1 to 5 tokens, every third with a changed last token, with brute force.

        Args:
            stream: the text as it is stored.
            checks: n-grams to compare.
            seed: of their choice, by a generator of its own.

        Raises:
            RuntimeError: a count is wrong.
        """
        rng = np.random.default_rng(seed)
        if self.count([]) != len(stream):
            raise RuntimeError(f"the index holds {self.count([])} tokens, the text {len(stream)}: build it again")
        for number in range(checks):
            length = min(int(rng.integers(1, 6)), len(stream))
            start = int(rng.integers(len(stream) - length + 1))
            gram = stream[start : start + length].copy()
            if number % 3 == 2:
                gram[-1] = stream[int(rng.integers(len(stream)))]
            query = [int(token) for token in gram.view(gram.dtype.newbyteorder("<"))]
            counted, right = int(_answer(self._engine.count(query))["count"]), brute_count(stream, gram)
            if counted != right:
                raise RuntimeError(
                    f"the index counts the {length}-gram {gram.tolist()} {counted} times, and it stands in the text "
                    f"{right} times: the index is unusable; build it with parts=1, or over a longer text"
                )

    def _stored(self, ids: Sequence[int]) -> list[int]:
        """Ids as the engine reads the stored ones."""
        array = np.asarray(ids, dtype=np.int64)
        if len(array) and not 0 <= array.min() <= array.max() < self._vocab_size:
            raise ValueError(
                f"ids reach from {array.min()} to {array.max()}, and the index was built for vocab_size="
                f"{self._vocab_size}: give ids of the tokenizer of the text"
            )
        return [int(token) for token in array.astype(self._dtype).view(self._dtype.newbyteorder("<"))]


def _engine_module() -> Any:
    """The package's engine.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("infini_gram.engine")
    except ImportError as error:
        raise ImportError(
            "an ∞-gram index needs the package infini-gram: pip install 'geomcallbacks[memorisation]'. It has wheels "
            "for Linux on x86-64 and macOS on ARM, CPython 3.11 to 3.13; elsewhere build the set on such a machine and "
            "load its file with Memorisation.load, or ask a public index with InfiniGramAPI"
        ) from error


def _opened(engine: Any, folder: Path, width: int) -> Any:
    """The package's engine on this folder.

    It tells its files apart by words that it looks for in the whole path, and the process dies where the folder's own
    path holds one ("stable" does). So it is led there by another name; once open, it reads no name again.
    """
    settings = {"vocab_size": 2**32 - 1, "token_dtype": "u32"} if width == 4 else {}
    with tempfile.TemporaryDirectory() as elsewhere:
        link = Path(elsewhere) / "index"
        if any(word in str(link) for word in _FILES):
            raise ValueError(f"infini-gram cannot read below {elsewhere}, which has one of {_FILES} in it: set TMPDIR")
        link.symlink_to(folder.resolve(), target_is_directory=True)
        return engine.InfiniGramEngine(index_dir=str(link), eos_token_id=0, **settings)


def _read_about(folder: Path) -> dict[str, Any]:
    """What `build` wrote down last, once text and table are seen to be the same: a torn table ends the process."""
    if not (folder / "about.json").is_file():
        raise FileNotFoundError(f"{folder} holds no whole index: make one with InfiniGramIndex.build")
    about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    if about.get("format") != _FORMAT:
        raise ValueError(
            f"{folder}/about.json is of the format {about.get('format')!r}, not {_FORMAT!r}: build it again"
        )
    text, table = file_sha256(folder / "tokenized.0")[:16], file_sha256(folder / "table.0")
    if (text, table) != (about["fingerprint"], about["table_sha256"]):
        raise ValueError(f"the files in {folder} were changed after the index was built: build it again")
    return about


def _answer(result: Any) -> Any:
    if "error" in result:
        raise ValueError(f"infini-gram refused the query: {result['error']}")
    return result
