"""Rows for the ∞-gram comparison: held-out continuations, and questions with their answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from geomcallbacks.behaviour.completions import Completions, encode_prompts


def continuations(
    documents: Sequence[Sequence[int]], *, prompt_length: int, answer_length: int, rows: int, seed: int = 0
) -> Completions:
    """Held-out text as a prompt and what follows it, both of a fixed number of tokens.

    Each document is cut into windows that do not overlap, and `rows` of all windows are drawn. Answers of one length
    matter: a sum of log-probabilities falls with every token, so that with answers of several lengths two models
    agree on the order by length alone.

    Args:
        documents: token ids of held-out documents, without special tokens. No row crosses from one into the next.
        prompt_length: tokens of each prompt.
        answer_length: tokens of each answer.
        rows: windows that are drawn.
        seed: of the draw, by a generator of its own.

    Raises:
        ValueError: a length or number is not positive, or there are fewer windows than `rows`.
    """
    for name, value in (("prompt_length", prompt_length), ("answer_length", answer_length), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name}={value}: give a positive number")
    length = prompt_length + answer_length
    starts = [
        (index, start)
        for index, document in enumerate(documents)
        for start in range(0, len(document) - length + 1, length)
    ]
    if len(starts) < rows:
        raise ValueError(
            f"rows={rows}: the held-out documents have only {len(starts)} windows of {prompt_length} + {answer_length}"
            " tokens; lower rows or a length, or give more documents"
        )
    windows = [documents[index][start : start + length] for index, start in random.Random(seed).sample(starts, rows)]
    prompts = [[int(token) for token in window[:prompt_length]] for window in windows]
    return Completions(prompts, [[int(token) for token in window[prompt_length:]] for window in windows])


def trivia_rows(dataset_rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> Completions:
    """Questions and their gold answers, "Question: … Answer: …", as Li et al. 2025 compare them with an ∞-gram model.

    Question and answer are tokenised as one text, since a tokenizer may treat the head of a text in a way of its own;
    a token across the boundary belongs to the answer. BOS as the tokenizer adds it, no EOS.

    Args:
        dataset_rows: rows of TriviaQA's schema: `question`, and `answer` with its `value`.
        tokenizer: a Transformers tokenizer; it is copied, not changed. An ∞-gram index has its own: build these rows
            once with the model's and once with that of the index.

    Raises:
        ValueError: there are no rows, or one lacks a field.
    """
    prompts, texts = [], []
    for index, row in enumerate(dataset_rows):
        answer = row.get("answer")
        value = answer.get("value") if isinstance(answer, Mapping) else None
        if not row.get("question") or not value:
            raise ValueError(
                f"row {index} has the fields {sorted(row)}: give TriviaQA's schema, a question and answer['value']"
            )
        prompts.append(f"Question: {row['question']} Answer:")
        texts.append(f"{prompts[-1]} {value}")
    if not prompts:
        raise ValueError("dataset_rows is empty: give at least one question and answer")
    shared = []
    for prompt, text in zip(encode_prompts(prompts, tokenizer), encode_prompts(texts, tokenizer), strict=True):
        same = next((i for i, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(prompt))
        shared.append((text[:same], text[same:]))
    return Completions([prompt for prompt, _ in shared], [answer for _, answer in shared])
