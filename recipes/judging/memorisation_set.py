"""The ∞-gram comparison of a pretraining run: held-out continuations, scored by an index of the run's own tokens."""

from __future__ import annotations

import tempfile

import torch
from transformers import PreTrainedTokenizerBase

from geomcallbacks.behaviour import InfiniGramIndex, Memorisation, continuations, ngram_scores


def memorisation_set(
    rows_nt: torch.Tensor,
    held_out_texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    rows: int = 1000,
    prompt_length: int = 32,
    answer_length: int = 8,
    batch_size: int = 64,
) -> Memorisation:
    """Index the training tokens and score held-out continuations.

    The index, about five bytes a token, lies in a temporary folder for so long.

    Args:
        rows_nt: The rows that the model is trained on as ``packed_rows`` gives them: one stream, EOS after each
            document.
        held_out_texts: Texts that the model is not trained on.
        tokenizer: The model's.
        rows: Continuations.
        prompt_length: Tokens before each continuation.
        answer_length: Tokens of each continuation.
        batch_size: Rows that go through the model together.

    Raises:
        ImportError: The package infini-gram is missing.
        ValueError: The texts have fewer windows than ``rows``.
    """
    documents = tokenizer(held_out_texts, add_special_tokens=False, verbose=False)["input_ids"]
    answers = continuations(documents, prompt_length=prompt_length, answer_length=answer_length, rows=rows, seed=0)
    with tempfile.TemporaryDirectory(prefix="infinigram-") as folder:
        index = InfiniGramIndex.build(rows_nt.flatten(), folder, vocab_size=len(tokenizer))
        return Memorisation(answers, ngram_scores(index, answers), batch_size=batch_size)
