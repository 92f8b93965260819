"""An ∞-gram index over a run's own training tokens, by the package infini-gram.

An ∞-gram model (Liu et al. 2024, arXiv 2401.17377) gives the next token the share that it has among the continuations
of the longest end of the context that occurs in the text at all.

Every index is checked against brute force before it is used: see `infinigram.build` for what can go wrong.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomcallbacks.behaviour.infinigram.build import brute_count, sort_suffixes, token_dtype, token_stream

#: What the package looks for in the path of a file.
_FILES = ("tokenized", "table", "offset", "metadata", "metaoff", "unigram")


class InfiniGramIndex:
    """An ∞-gram index in a folder. Make one with `build`.

    Args:
        engine: the package's engine, on the folder.
        stream: the text as it is stored.
        vocab_size: all ids are below it.

    Attributes:
        tokens: tokens of the text, a separator before each document included.
        fingerprint: 16 hexadecimal digits of the SHA-256 over them.
        source: what `InfiniGram` asks for.
    """

    def __init__(self, engine: Any, stream: NDArray[Any], vocab_size: int) -> None:
        self.tokens = len(stream)
        self.fingerprint = hashlib.sha256(stream.tobytes()).hexdigest()[:16]
        self.source = f"infini-gram index of {self.tokens} tokens, {self.fingerprint}"
        self._engine, self._vocab_size, self._dtype = engine, vocab_size, stream.dtype

    @classmethod
    def build(cls, ids: ArrayLike | Sequence[Sequence[int]], folder: str | Path, *, vocab_size: int) -> InfiniGramIndex:
        """Index token ids, and check the counts against brute force.

        Args:
            ids: one dimension of token ids, or a list of documents, between which no n-gram reaches.
            folder: where to write; an index that stands there is replaced.
            vocab_size: all ids are below it; up to 65,535 a token takes two bytes, beyond that four.

        Raises:
            ImportError: the package infini-gram is missing.
            ValueError: there are no ids, or they do not fit `vocab_size`.
            RuntimeError: the package's builder failed, or the counts of its index are not those of the text.
        """
        package = _import_engine()
        dtype = token_dtype(vocab_size)
        stream, starts = token_stream(ids, vocab_size, dtype)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stream.tofile(folder / "tokenized.0")
        (starts * dtype.itemsize).astype("<u8").tofile(folder / "offset.0")
        sort_suffixes(Path(package.__file__).parent / "rust_indexing", folder, dtype.itemsize)
        index = cls(_open_engine(package, folder, dtype.itemsize), stream, vocab_size)
        index._check_counts(stream)
        return index

    def count(self, ids: Sequence[int]) -> int:
        """How often these tokens stand in the text one after the other; all tokens of the text where `ids` is empty."""
        return int(_checked(self._engine.count(self._stored(ids)))["count"])

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
            result = _checked(self._engine.infgram_prob(context, token))
            found.append(float(result["prob"]))
            lengths.append(int(result["suffix_len"]))
            # Whatever is found for the next token is at most one token longer: what lies before cannot matter.
            context = [*context[len(context) - lengths[-1] :], token]
        return found, lengths

    def _check_counts(self, stream: NDArray[Any]) -> None:
        """Compare the counts of 100 n-grams of 1 to 5 tokens, every third with a changed last token, with brute force.

        Args:
            stream: the text as it is stored.

        Raises:
            RuntimeError: a count is wrong.
        """
        rng = np.random.default_rng(0)
        for number in range(100):
            length = min(int(rng.integers(1, 6)), len(stream))
            start = int(rng.integers(len(stream) - length + 1))
            gram = stream[start : start + length].copy()
            if number % 3 == 2:
                gram[-1] = stream[int(rng.integers(len(stream)))]
            counted = int(_checked(self._engine.count(_as_read(gram)))["count"])
            if counted != (right := brute_count(stream, gram)):
                found = f"the index counts {gram.tolist()} {counted} times, and it stands in the text {right} times"
                raise RuntimeError(f"{found}: the index is unusable; build it over a longer text")

    def _stored(self, ids: Sequence[int]) -> list[int]:
        """Ids as the engine reads the stored ones."""
        array = np.asarray(ids, dtype=np.int64)
        if len(array) and not 0 <= array.min() <= array.max() < self._vocab_size:
            found = f"ids reach from {array.min()} to {array.max()}"
            raise ValueError(f"{found}, beyond vocab_size={self._vocab_size}: tokenise with the text's tokenizer")
        return _as_read(array.astype(self._dtype))


def _as_read(stored: NDArray[Any]) -> list[int]:
    """The numbers that the engine, which reads the lowest byte first, sees in stored tokens."""
    return [int(token) for token in stored.view(stored.dtype.newbyteorder("<"))]


def _import_engine() -> Any:
    """The package's engine.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("infini_gram.engine")
    except ImportError as error:
        raise ImportError(
            "an ∞-gram index needs infini-gram, for Linux on x86-64 and macOS on ARM: pip install"
            " 'geomcallbacks[memorisation]'. Elsewhere load a set with Memorisation.load, or ask InfiniGramAPI"
        ) from error


def _open_engine(package: Any, folder: Path, width: int) -> Any:
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
        return package.InfiniGramEngine(index_dir=str(link), eos_token_id=0, **settings)


def _checked(result: Any) -> Any:
    """An answer of the engine, or ``ValueError`` where it refused the query."""
    if "error" in result:
        raise ValueError(f"infini-gram refused the query: {result['error']}")
    return result
