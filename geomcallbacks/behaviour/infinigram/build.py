"""How a text is laid out and sorted for the engine of infini-gram 2.6.

The package's own builder knows three tokenizers, and two things of it must be known:

- It cuts the text into a part for each CPU, parts that overlap by 100,000 bytes. Where parts are shorter than that, it
  writes an index whose counts are wrong, and says nothing. So there is one part here, which needs no merging.
- It keeps a table as long as the largest token, the bytes read in their order. Tokens of four bytes written with the
  lowest first ask it for tens of gigabytes. So they are written with the highest first, and queries too.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Two bytes a token up to a vocabulary of 65,535, else four."""
    return np.dtype("<u2") if vocab_size <= 2**16 - 1 else np.dtype(">u4")


def token_stream(ids: Any, vocab_size: int, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The text as it is stored, `vocab_size` before each document as a separator, and where the documents start.

    Raises:
        ValueError: these are not token ids below `vocab_size`.
    """
    one = hasattr(ids, "ndim") or (len(ids) > 0 and np.ndim(ids[0]) == 0)
    documents = [array for array in map(np.asarray, [ids] if one else ids) if array.size]
    if not documents:
        raise ValueError("ids is empty: give the tokens that the model was trained on")
    for array in documents:
        if array.ndim != 1 or array.dtype.kind not in "iu":
            found = f"ids of shape {array.shape}, dtype {array.dtype}"
            raise ValueError(f"{found}: give one dimension of token ids (packed rows are flattened), or such a list")
    low, high = min(int(array.min()) for array in documents), max(int(array.max()) for array in documents)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"ids reach from {low} to {high}, and vocab_size={vocab_size}: give the tokenizer's length")
    separator = np.array([vocab_size], dtype=dtype)  # no token's id, and as small as can be: see above
    pieces = [piece for array in documents for piece in (separator, array.astype(dtype))]
    lengths = np.array([len(array) + 1 for array in documents], dtype=np.int64)
    return np.concatenate(pieces).astype(dtype, copy=False), np.cumsum(lengths) - lengths


def sort_suffixes(program: Path, folder: Path, width: int) -> None:
    """Write `table.0`, the suffix array of `tokenized.0`, as the package's builder does, and without its printing.

    Args:
        program: the package's `rust_indexing`.
        folder: holds the text.
        width: bytes of a token.

    Raises:
        RuntimeError: the program failed, or its table is not whole.
    """
    text, table = folder / "tokenized.0", folder / "table.0"
    size = text.stat().st_size
    pointer = math.ceil(math.log2(size) / 8)  # bytes of one
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as parts:
        files = [f"--data-file={text.resolve()}", f"--parts-dir={Path(parts).resolve()}"]
        shape = ["--start-byte=0", f"--end-byte={size}", f"--ratio={pointer}", f"--token-width={width}"]
        command = [str(program), "make-part", *files, *shape]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RuntimeError(f"infini-gram's builder ended with {done.returncode}: {done.stderr.strip()[:500]}")
        (Path(parts) / f"0-{size}").replace(table)
    # With a table of another length the engine reads beyond it, and the process dies.
    if (written := table.stat().st_size) != (due := size // width * pointer):
        raise RuntimeError(f"infini-gram wrote a table of {written} bytes, and {due} are due: give a longer text")


def brute_count(stream: NDArray[Any], gram: NDArray[Any]) -> int:
    """How often the tokens of `gram` stand in `stream` one after the other, by looking everywhere."""
    starts = np.flatnonzero(stream[: len(stream) - len(gram) + 1] == gram[0])
    for place in range(1, len(gram)):
        starts = starts[stream[starts + place] == gram[place]]
    return len(starts)
