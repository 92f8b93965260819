"""How a text is laid out and sorted for the engine of infini-gram 2.6.

The package's own builder knows three tokenizers, and two things of it must be known:

- It cuts the text into a part for each CPU, parts that overlap by 100,000 bytes. Where parts are shorter than that, it
  writes an index whose counts are wrong, and says nothing. So there is one part here unless more are asked for.
- It keeps a table as long as the largest token, the bytes read in their order. Tokens of four bytes written with the
  lowest first ask it for tens of gigabytes. So they are written with the highest first, and queries too.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes by which the package's parts overlap.
_OVERLAP = 100_000


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
            raise ValueError(
                f"ids of shape {array.shape}, dtype {array.dtype}: give one dimension of token ids (packed rows are "
                "flattened), or a list of documents"
            )
    low, high = min(int(array.min()) for array in documents), max(int(array.max()) for array in documents)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"ids reach from {low} to {high}, and vocab_size={vocab_size}: give the tokenizer's length")
    separator = np.array([vocab_size], dtype=dtype)  # no token's id, and as small as can be: see above
    pieces = [piece for array in documents for piece in (separator, array.astype(dtype))]
    lengths = np.array([len(array) + 1 for array in documents], dtype=np.int64)
    return np.concatenate(pieces).astype(dtype, copy=False), np.cumsum(lengths) - lengths


def check_parts(stream: NDArray[Any], parts: int) -> None:
    """Raise ``ValueError`` where the text is too small for so many parts."""
    if parts < 1 or (parts > 1 and stream.nbytes // parts < 2 * _OVERLAP):
        raise ValueError(
            f"parts={parts} of a text of {len(stream)} tokens, {stream.nbytes} bytes: each part must have "
            f"{2 * _OVERLAP} bytes, or the index counts wrongly; give fewer parts"
        )


def sort_suffixes(program: Path, folder: Path, width: int, parts: int) -> None:
    """Write `table.0`, the suffix array of `tokenized.0`, as the package's builder does, and without its printing.

    Args:
        program: the package's `rust_indexing`.
        folder: holds the text.
        width: bytes of a token.
        parts: see `check_parts`.

    Raises:
        RuntimeError: the program failed, or its table is not whole.
    """
    text, table, scratch = folder / "tokenized.0", folder / "table.0", folder / "building"
    size = text.stat().st_size
    ratio = math.ceil(math.log2(size) / 8)  # bytes of a pointer
    step = math.ceil(size / parts / width) * width
    parts_dir, merged_dir = (scratch.resolve() / name for name in ("parts", "merged"))
    options = [f"--data-file={text.resolve()}", f"--ratio={ratio}", f"--token-width={width}"]
    threads = f"--num-threads={parts}"
    table.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for made in (parts_dir, merged_dir):
            made.mkdir(parents=True)
        options.append(f"--parts-dir={parts_dir}")
        for start in range(0, size, step):
            end = min(start + step + _OVERLAP, size)
            _run(program, "make-part", *options, f"--start-byte={start}", f"--end-byte={end}")
        _run(program, "merge", *options, f"--merged-dir={merged_dir}", threads, f"--hacksize={_OVERLAP}")
        options.pop()
        _run(program, "concat", *options, f"--merged-dir={merged_dir}", f"--merged-file={table.resolve()}", threads)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # With a table of another length the engine reads beyond it, and the process dies.
    if table.stat().st_size != size // width * ratio:
        raise RuntimeError(
            f"infini-gram wrote {table.stat().st_size} bytes of pointers for {size // width} tokens, which take "
            f"{ratio} each: build the index with parts=1"
        )


def brute_count(stream: NDArray[Any], gram: NDArray[Any]) -> int:
    """How often the tokens of `gram` stand in `stream` one after the other, by looking everywhere."""
    starts = np.flatnonzero(stream[: len(stream) - len(gram) + 1] == gram[0])
    for place in range(1, len(gram)):
        starts = starts[stream[starts + place] == gram[place]]
    return len(starts)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(program: Path, *arguments: str) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if line.strip())[:500]
        raise RuntimeError(f"infini-gram's {arguments[0]} failed with status {done.returncode}: {said}")
