"""A tokenizer trained on the corpus, and token rows cut from documents."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text can be encoded, nothing is added at either end.

    Each digit is a token of its own, as in Llama's tokenizer: a small model learns no sums from digits that merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING)


def packed_rows(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
    """Join the texts, each ended by EOS, and cut them into rows; the incomplete last row is dropped.

    Returns:
        Token ids of shape (rows, length), int32, in memory: 4 bytes a token, so a thousand million take 4 GB.

    Raises:
        ValueError: The tokenizer has no EOS, or the texts are shorter than one row.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which keeps documents apart; give one that has")
    ids = [torch.tensor([*row, tokenizer.eos_token_id], dtype=torch.int32) for row in _token_ids(texts, tokenizer)]
    stream = torch.cat(ids)
    if len(stream) < length:
        raise ValueError(f"the texts have {len(stream)} tokens, less than one row of {length}; give more text")
    return stream[: len(stream) // length * length].view(-1, length)


def probe_rows(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, size: int, length: int, seed: int = 0
) -> torch.Tensor:
    """Cut each text into windows of ``length`` tokens that do not overlap, and draw ``size`` of them.

    Returns:
        Token ids of shape (size, length), int64. No row crosses from one document into the next.

    Raises:
        ValueError: There are fewer windows than ``size``.
    """
    windows = [
        row[start : start + length]
        for row in _token_ids(texts, tokenizer)
        for start in range(0, len(row) - length + 1, length)
    ]
    if len(windows) < size:
        raise ValueError(
            f"probe_rows={size}: the held-out documents have only {len(windows)} windows of {length} tokens; "
            f"lower the number of rows or their length, or give more documents"
        )
    return torch.tensor(random.Random(seed).sample(windows, size))


def _token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, batch: int = 1000) -> Iterator[list[int]]:
    """Yield the ids of each text, without the special tokens that a tokenizer would add."""
    for start in range(0, len(texts), batch):
        yield from tokenizer(texts[start : start + batch], add_special_tokens=False, verbose=False)["input_ids"]
