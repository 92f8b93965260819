"""The ∞-gram comparison of a pretraining run: an index of its own tokens, and held-out continuations scored by it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from geomcallbacks.behaviour import InfiniGramIndex, Memorisation, continuations, ngram_scores

FILE = "memorisation.safetensors"


def memorisation_set(
    rows_nt: torch.Tensor,
    held_out_texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    rows: int = 1000,
    seed: int = 0,
    prompt_length: int = 32,
    answer_length: int = 8,
    backoff: bool = False,
) -> Memorisation:
    """Indexes the training tokens, scores held-out continuations, and saves them as ``memorisation.safetensors``.

    The index itself, about five bytes a token, is removed again: the file is all that a measurement needs.

    Args:
        rows_nt: The rows that the model is trained on as ``packed_rows`` gives them: one stream, EOS after each
            document.
        held_out_texts: Texts that the model is not trained on.
        tokenizer: The model's.
        folder: The run folder.
        rows: Continuations.
        seed: Of their choice.
        prompt_length: Tokens before each continuation.
        answer_length: Tokens of each continuation.
        backoff: See ``geomcallbacks.behaviour.ngram_scores``; the paper does without.

    Raises:
        ImportError: The package infini-gram is missing.
        ValueError: The texts have fewer windows than ``rows``.
    """
    folder = Path(folder)
    documents = tokenizer(held_out_texts, add_special_tokens=False, verbose=False)["input_ids"]
    answers = continuations(documents, prompt_length=prompt_length, answer_length=answer_length, rows=rows, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="infinigram-", dir=folder) as index_folder:
        index = InfiniGramIndex.build(rows_nt.flatten(), index_folder, vocab_size=len(tokenizer))
        measure = Memorisation(answers, ngram_scores(index, answers, backoff=backoff))
    measure.save(folder / FILE)
    return measure
