"""ProbeSet: the fixed, held-out token rows on which a model's geometry is measured.

Rows are kept without padding knowledge: whichever side the caller padded, a row is its real tokens, stored
left-aligned. A causal model never lets a real token see what comes after it, so right padding is harmless and the
numbers cannot depend on the tokenizer's padding side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from geomcallbacks.probing.columns import column_of, places_of
from geomcallbacks.probing.rows import check_rows, left_aligned, padded
from geomcallbacks.probing.suspect import distinct_rows, warn_of_rows
from geomcallbacks.probing.text import tokenise

_FORMAT = "geomcallbacks.probe.v1"


@dataclass(frozen=True)
class ProbeBatch:
    """Rows that go through the model together.

    Attributes:
        rows_b: (b,) numbers of the probe's rows.
        input_ids_bt: (b, t) tokens, right-padded with 0.
        lengths_b: (b,) real tokens of each row.
    """

    rows_b: Tensor
    input_ids_bt: Tensor
    lengths_b: Tensor

    @cached_property
    def mask_bt(self) -> Tensor:
        """(b, t) 1 for real tokens, 0 for padding."""
        return (torch.arange(self.input_ids_bt.shape[1], device="cpu") < self.lengths_b[:, None]).long()

    @cached_property
    def padded(self) -> bool:
        """Whether any row is shorter than the batch is wide."""
        return int(self.lengths_b.min()) < self.input_ids_bt.shape[1]


class ProbeSet:
    """Fixed token rows, with a fingerprint that names them.

    Build one with `from_texts`, `from_dataset` or `from_token_ids`; keep it with `save` and `load`.

    Attributes:
        input_ids_nt: (n, t) int64 tokens, left-aligned, 0 behind the end of a row.
        lengths_n: (n,) int64 real tokens of each row, at least two.
        dropped: texts that were passed over while the probe was built: too short, or None or NaN.
    """

    def __init__(self, input_ids_nt: Tensor, lengths_n: Tensor, *, dropped: int = 0) -> None:
        check_rows(input_ids_nt, lengths_n)
        width = int(lengths_n.max())
        self.lengths_n = lengths_n.to("cpu", torch.int64)
        keep = torch.arange(width, device="cpu") < self.lengths_n[:, None]
        self.input_ids_nt = input_ids_nt[:, :width].to("cpu", torch.int64) * keep
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.lengths_n)

    def __repr__(self) -> str:
        said = [f"{len(self)} rows of {int(self.lengths_n.min())}..{self.max_tokens} tokens"]
        said += [f"{self.distinct} different"] if self.distinct < len(self) else []
        said += [f"dropped={self.dropped}"] if self.dropped else []
        return f"ProbeSet({', '.join(said)}, fingerprint={self.fingerprint})"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the rows' tokens and lengths."""
        digest = hashlib.sha256(_FORMAT.encode())
        for part in (self.lengths_n, self.input_ids_nt):
            digest.update(part.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def distinct(self) -> int:
        """How many of the rows differ: equal ones lower RankMe."""
        return len(distinct_rows(self.input_ids_nt, self.lengths_n))

    @property
    def max_token_id(self) -> int:
        """The largest token id in any row: a model's vocabulary must reach past it."""
        return int(self.input_ids_nt.max())

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths_n.max())

    @classmethod
    def from_token_ids(cls, ids_nt: Tensor | Sequence[Sequence[int]], mask_nt: Tensor | None = None) -> ProbeSet:
        """Take token ids as they are.

        Args:
            ids_nt: (n, t) integer token ids, or a list of rows of differing length.
            mask_nt: (n, t), non-zero for real tokens; padding may stand on either side, but not inside a row. None:
                every token is real.

        Raises:
            ValueError: no rows, a row shorter than two tokens, what is no token id, or a mask with holes.

        Warns:
            UserWarning: most rows end in the same token, or more than 1 % of them repeat another.
        """
        if mask_nt is not None and not isinstance(ids_nt, Tensor):
            raise ValueError("mask_nt goes with a tensor of ids: rows given as lists have no padding to mask")
        rows = left_aligned(ids_nt, mask_nt) if isinstance(ids_nt, Tensor) else padded(ids_nt)
        return cls(*rows)._checked()

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | None],
        tokenizer: Any,
        *,
        size: int,
        max_length: int,
        seed: int = 0,
        min_length: int = 32,
    ) -> ProbeSet:
        """Tokenise held-out texts into `size` rows.

        A list or a data set's column is visited in an order drawn from `seed` (a private generator; no global random
        state moves), and only what is taken of it is read; a stream or an array is taken in its own order and read no
        further than needed. BOS is added as the tokenizer adds it, once, also where a chat template has put it into
        the text. What only marks the end of a text or a turn is never kept (EOS, [SEP], ``<|im_end|>`` and the line
        end behind it), or the last state of every row would be that of the same token.

        Args:
            texts: held-out texts. None and NaN are passed over.
            tokenizer: a Transformers tokenizer, or a processor that holds one; it is copied, not changed.
            size: rows of the probe, in texts.
            max_length: a text is cut to so many tokens.
            seed: order in which a list is visited.
            min_length: texts of fewer tokens are passed over, and counted in `dropped`.

        Raises:
            ValueError: fewer than `size` texts are long enough, or the arguments contradict each other.
            TypeError: a text is not a string, `texts` has no order, or `tokenizer` is none.

        Warns:
            UserWarning: texts begin with the BOS that the tokenizer adds; see also `from_token_ids`.
        """
        found = tokenise(texts, tokenizer, size=size, max_length=max_length, seed=seed, min_length=min_length)
        return cls(*padded(found.rows), dropped=found.dropped)._checked(tokenizer)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        tokenizer: Any,
        *,
        text_column: str = "text",
        size: int,
        max_length: int,
        seed: int = 0,
        min_length: int = 32,
    ) -> ProbeSet:
        """Tokenise one column of a Hugging Face data set, streamed or not, or of a table in memory. See `from_texts`.

        Raises:
            ValueError: there is no such column, or `dataset` is several splits; see also `from_texts`.
            TypeError: `dataset` has no columns; see also `from_texts`.
        """
        texts = column_of(dataset, text_column)
        found = tokenise(texts, tokenizer, size=size, max_length=max_length, seed=seed, min_length=min_length)
        return cls(*padded(found.rows), dropped=found.dropped)._checked(tokenizer)

    @classmethod
    def split(
        cls,
        dataset: Any,
        tokenizer: Any,
        *,
        text_column: str = "text",
        size: int,
        max_length: int,
        seed: int = 0,
        min_length: int = 32,
    ) -> tuple[Any, ProbeSet]:
        """Set a probe aside: return what is left to train on, and the probe, without overlap.

        Texts equal to one of the probe's are left out of the training side too, wherever they stand.

        Args:
            dataset: a list of texts, or a Hugging Face data set that is not streamed.
            tokenizer: a Transformers tokenizer; it is copied, not changed.
            text_column: the data set's column of texts.
            size: rows of the probe, in texts.
            max_length: a text is cut to so many tokens.
            seed: order in which texts are visited.
            min_length: texts of fewer tokens are passed over.

        Returns:
            (train, probe), `train` of the same kind as `dataset`.

        Raises:
            ValueError: `dataset` is a stream; see also `from_dataset`.
            TypeError: it is another kind of table; see also `from_dataset`.
        """
        is_list = isinstance(dataset, Sequence) and not isinstance(dataset, str)
        texts = dataset if is_list else column_of(dataset, text_column)
        if not isinstance(texts, Sequence):
            raise ValueError("a stream cannot be split: take the probe from its head and skip those rows in training")
        if not is_list and not hasattr(dataset, "features"):
            kind = type(dataset).__name__
            raise TypeError(f"dataset is a {kind}: give a list of texts or a datasets.Dataset (Dataset.from_pandas)")
        found = tokenise(texts, tokenizer, size=size, max_length=max_length, seed=seed, min_length=min_length)
        held_out = places_of(texts, {str(texts[index]) for index in found.taken})
        kept = np.delete(np.arange(len(texts)), held_out)
        train = [dataset[index] for index in kept.tolist()] if is_list else dataset.select(kept)
        return train, cls(*padded(found.rows), dropped=found.dropped)._checked(tokenizer)

    def _checked(self, tokenizer: Any = None) -> ProbeSet:
        warn_of_rows(self.input_ids_nt, self.lengths_n, tokenizer)
        return self

    def save(self, path: str | Path) -> None:
        """Write the probe to a safetensors file."""
        metadata = {"format": _FORMAT, "fingerprint": self.fingerprint, "dropped": str(self.dropped)}
        rows = {"input_ids": self.input_ids_nt.to(torch.int32), "lengths": self.lengths_n}
        Path(path).expanduser().write_bytes(save(rows, metadata))  # by Python, so that a full disk is an OSError

    @classmethod
    def load(cls, path: str | Path) -> ProbeSet:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a probe, or its rows do not match its fingerprint.
        """
        file_path = Path(path).expanduser()
        if file_path.is_dir():
            raise ValueError(f"{path} is a folder: give the file in it that ProbeSet.save wrote")
        try:
            with safe_open(str(file_path), framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"its format reads {metadata.get('format')!r}")
                rows, lengths = file.get_tensor("input_ids"), file.get_tensor("lengths")
            probe = cls(rows, lengths, dropped=int(metadata.get("dropped", 0)))
        except (SafetensorError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path} is not a saved probe, or was torn: {error}") from error
        if probe.fingerprint != metadata.get("fingerprint"):
            prints = f"{probe.fingerprint}, and was {metadata.get('fingerprint')} when saved"
            raise ValueError(f"{path} was changed, its fingerprint is {prints}: build the probe again")
        return probe

    def batches(self, batch_size: int) -> list[ProbeBatch]:
        """Return the probe cut into batches, longest rows first.

        The cut depends on the rows and on the arguments alone, never on how many processes share the work: another
        composition of a batch moves low-precision features. Longest first, so that memory runs out at once or never,
        and so that rows of like length stand together and little is padded.

        Args:
            batch_size: rows of a batch; the last may have fewer.
        """
        order = torch.argsort(self.lengths_n, descending=True, stable=True)
        return [self.batch(rows_b) for rows_b in torch.split(order, batch_size)]

    def batch(self, rows_b: Tensor) -> ProbeBatch:
        """Return the rows of the given numbers (b,), padded to the longest of them."""
        lengths_b = self.lengths_n[rows_b]
        return ProbeBatch(rows_b, self.input_ids_nt[rows_b, : int(lengths_b.max())], lengths_b)


def deal(batches: list[ProbeBatch], rank: int, world_size: int) -> list[tuple[ProbeBatch, bool]]:
    """Return the share of one process: whole batches, the same number for each process.

    Where the batches do not divide evenly, the processes that would go short get the first batch once more, marked
    ``False``: they run it so that no process waits for another, and do not count it.
    """
    share = [(batch, True) for batch in batches[rank::world_size]]
    rounds = -(-len(batches) // world_size)
    return share + [(batches[0], False)] * (rounds - len(share))
