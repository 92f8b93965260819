"""What in a probe's rows makes its numbers suspect: the same end of most rows, and rows that stand twice."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from typing import Any

from torch import Tensor

_ROWS = 8  # fewer may end alike by chance
_DUPLICATES = 0.01  # share of the rows that is not worth a word


def distinct_rows(input_ids_nt: Tensor, lengths_n: Tensor) -> list[int]:
    """Return the numbers of those rows (n, t) of lengths (n,) that repeat no row before them."""
    found: dict[bytes, int] = {}
    for number, (ids, length) in enumerate(zip(input_ids_nt.numpy(), lengths_n.tolist(), strict=True)):
        found.setdefault(hashlib.blake2b(ids[:length].tobytes(), digest_size=16).digest(), number)
    return list(found.values())


def warn_of_rows(input_ids_nt: Tensor, lengths_n: Tensor, tokenizer: Any = None) -> None:
    """Warn where rows (n, t) of lengths (n,) give too low a rank by themselves; `tokenizer` shows a token as text."""
    distinct = distinct_rows(input_ids_nt, lengths_n)
    repeated = len(lengths_n) - len(distinct)
    if repeated > _DUPLICATES * len(lengths_n):
        _warn(
            f"{repeated} of the probe's {len(lengths_n)} rows repeat another, which lowers RankMe: leave out repeated "
            "texts, with list(dict.fromkeys(texts)) say"
        )
    rows, last_n = len(distinct), lengths_n[distinct] - 1
    counts = Counter(input_ids_nt[distinct].gather(1, last_n[:, None])[:, 0].tolist())
    token, most = counts.most_common(1)[0]
    if rows >= _ROWS and 2 * most > rows:
        decode = getattr(tokenizer, "decode", None)
        shown = f"token {token}" + (f" ({decode([token])!r})" if decode else "")
        _warn(
            f"{most} of the probe's {rows} different rows end in {shown}: their last states are alike, and RankMe of "
            "positions='last' comes out too low. Cut that token off the rows (padding is marked in mask_nt), leave out "
            "what closes every text (a generation prompt, an end mark, a line end), or measure positions=8"
        )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
