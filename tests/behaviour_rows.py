"""Rows that behaviour is measured on, and the reference: Transformers' own call for every prefix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import tiny
import torch

from geomcallbacks.behaviour import Choices, Completions


def completions(n: int = 11) -> Completions:
    """Rows of differing length, cut at 40 tokens."""
    prompts = [text[: 10 + 3 * i] for i, text in enumerate(tiny.texts(n, words=12))]
    answers = [text[: 8 + 5 * (n - i)] for i, text in enumerate(tiny.texts(n, words=20, seed=3))]
    return Completions.from_texts(prompts, answers, tiny.tokenizer(), max_length=40)


def choices(n: int = 23, seed: int = 0) -> Choices:
    """Random rows of four options of one to three tokens, some of them with a common beginning."""
    draw = random.Random(seed)
    tokens = lambda length: [draw.randrange(3, tiny.VOCABULARY) for _ in range(length)]
    rows = []
    for _ in range(n):
        row = [tokens(draw.randint(1, 3)) for _ in range(4)]
        row[1] = [*row[0], *tokens(1)]
        rows.append(row)
    return Choices([tokens(draw.randint(1, 20)) for _ in range(n)], rows, [draw.randrange(4) for _ in range(n)])


def one_by_one(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Log-probability of a completion: token by token, a forward pass for each prefix."""
    ids, total = list(prompt), 0.0
    for token in completion:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
        ids.append(token)
    return total


def state_of(model: Any) -> tuple[object, ...]:
    """All that a measure might leave behind on a model, and every random state; comparable with ==."""
    return (
        {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        [(m.training, sorted(vars(m)), len(m._forward_hooks) + len(m._forward_pre_hooks)) for m in model.modules()],
        [p.grad for p in model.parameters()],
        (model.config.to_dict(), model.generation_config.to_dict(), id(model.generation_config)),
        tiny.random_states(),
    )
