"""What a model writes: completions drawn from it, leaving no trace."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_positive, check_texts
from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.behaviour.rows.token_ids import encode_prompts
from geomcallbacks.reading.device import device_of

_LOGGER = logging.getLogger("geomcallbacks")
#: What a probability of 1 is in whole numbers: their sums are exact, in whatever order a device takes them.
_ONE = 2.0**60


@dataclass(frozen=True)
class Rollouts:
    """Completions drawn from a model, several for each prompt.

    Attributes:
        prompts: (p) texts.
        completions: (p × samples) texts, cut at EOS, without special tokens.
        token_ids: (p · samples) rows of prompt and completion, prompt by prompt; without EOS, so that they serve
            `ProbeSet.from_token_ids`.
        completion_tokens: (p × samples) tokens of the completions, EOS not counted.
    """

    prompts: list[str]
    completions: list[list[str]]
    token_ids: list[list[int]]
    completion_tokens: list[list[int]]


def sample(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> Rollouts:
    """Draw completions by ancestral sampling from the whole distribution: no top-k, no top-p, no penalties.

    Random numbers come from private generators, one for each batch. Model, tokenizer, generation settings and every
    random state are left as they were. The same arguments give the same completions; another `batch_size` gives others.

    Args:
        model: a causal language model of Transformers, wrapped or not.
        tokenizer: its tokenizer; it is copied, not changed. Its EOS ends a completion.
        prompts: texts, with BOS as the tokenizer adds it.
        samples: completions of each prompt.
        max_new_tokens: most tokens of a completion.
        temperature: divides the logits.
        seed: of the private generators.
        batch_size: completions that are drawn together. Where memory runs out, a batch is drawn in halves.

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or model and prompts do not fit.
        RuntimeError: the model gives logits that are no distribution.
    """
    check_sampling(samples, max_new_tokens, temperature, batch_size)
    check_texts("prompts", prompts)
    prompt_ids = repeated_prompts(prompts, tokenizer, samples)
    drawn = drawn_tokens(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    return rollouts_of(prompts, samples, prompt_ids, drawn, tokenizer)


def repeated_prompts(prompts: Sequence[str], tokenizer: Any, samples: int) -> list[list[int]]:
    """The token ids of each prompt, as often as it is completed."""
    return [row for row in encode_prompts(prompts, tokenizer) for _ in range(samples)]


def drawn_tokens(
    model: nn.Module,
    tokenizer: Any,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    index: int = 0,
    count: int = 1,
) -> list[list[int]]:
    """The tokens of a completion of each prompt, cut at EOS; see `sample`.

    Of `count` shares of the batches that of number `index` is drawn; completions of the others stay empty.
    """
    check_prompts(model, prompt_ids, max_new_tokens)
    eos = tokenizer.eos_token_id
    pad = next((token for token in (tokenizer.pad_token_id, eos) if token is not None), 0)
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": eos, "pad_token_id": pad}
    # By length, so that a batch has little padding.
    order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
    drawn: list[list[int]] = [[] for _ in order]
    with evaluating(model) as language_model:
        for start in range(index * batch_size, len(order), count * batch_size):
            batch = order[start : start + batch_size]
            tokens = _draw(language_model, [prompt_ids[row] for row in batch], settings, temperature, seed, start)
            for row, completion in zip(batch, tokens, strict=True):
                drawn[row] = completion[: completion.index(eos)] if eos in completion else completion
    return drawn


def rollouts_of(
    prompts: Sequence[str], samples: int, prompt_ids: list[list[int]], drawn: list[list[int]], tokenizer: Any
) -> Rollouts:
    """Put completions of `repeated_prompts` together."""
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    token_ids = [prompt + tokens for prompt, tokens in zip(prompt_ids, drawn, strict=True)]
    return Rollouts(list(prompts), _grouped(texts, samples), token_ids, _grouped(list(map(len, drawn)), samples))


def check_sampling(samples: int, max_new_tokens: int, temperature: float, batch_size: int) -> None:
    """Raise ``ValueError`` where one of the arguments of `sample` is out of its range."""
    check_positive(samples=samples, max_new_tokens=max_new_tokens, batch_size=batch_size)
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: give a positive number; near 0 the likeliest token is taken")


def check_prompts(model: nn.Module, prompt_ids: list[list[int]], max_new_tokens: int) -> None:
    """Raise ``ValueError`` where the prompts and so many tokens do not fit the model."""
    longest = max(map(len, prompt_ids)) + max_new_tokens
    check_tokens(model, "prompts and completions", max(map(max, prompt_ids)), longest)


def _draw(
    language_model: Any, rows: list[list[int]], settings: dict[str, Any], temperature: float, seed: int, start: int
) -> list[list[int]]:
    """The tokens that follow each row of a batch, which begins at row `start` of all; in halves if memory runs out."""
    from transformers import GenerationConfig, LogitsProcessorList

    # What ours leaves unset would be filled in from the model's own, penalties included; put back by `evaluating`.
    language_model.generation_config = GenerationConfig()
    try:
        inputs = _left_padded(rows, settings["pad_token_id"], device_of(language_model))
        out_bt = language_model.generate(
            **inputs,
            generation_config=GenerationConfig(use_cache=True, **settings),
            logits_processor=LogitsProcessorList([_Draw(temperature, _seed(seed, start))]),
        )
        tokens: list[list[int]] = out_bt[:, inputs["input_ids"].shape[1] :].tolist()
        return tokens
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    _LOGGER.warning("out of memory: %d completions are drawn in halves", len(rows))
    parts = ((rows[:half], start), (rows[half:], start + half))
    return [
        tokens for part, first in parts for tokens in _draw(language_model, part, settings, temperature, seed, first)
    ]


def _seed(seed: int, start: int) -> int:
    """The seed of a batch: whoever draws it, and whatever was drawn before, it is the same."""
    return seed if start == 0 else int.from_bytes(hashlib.sha256(f"{seed} {start}".encode()).digest()[:8]) >> 1


class _Draw:
    """Puts all probability on one token, drawn from the scores: a logits processor ahead of greedy decoding.

    By inverting the cumulative distribution, in whole numbers, with a uniform number for each row.
    `torch.multinomial`, which `generate` itself would use, draws a number for each token of the vocabulary: with 2,048
    of them on a CPU that took half the time of a tiny model's decoding.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __call__(self, input_ids_bt: Tensor, scores_bv: Tensor) -> Tensor:
        share_bv = torch.softmax(scores_bv.float() / self._temperature, dim=-1)
        # In float32 the sum over a large vocabulary rounds its rare tokens away; float64 is not on every device, and
        # its cumulative sum not deterministic on CUDA.
        cdf_bv = share_bv.mul_(_ONE).to(torch.int64).cumsum(-1)
        total_b1 = torch.where(share_bv[:, :1].isfinite(), cdf_bv[:, -1:], -1).cpu()
        if bool((total_b1 <= 0).any()):
            raise RuntimeError("the model's logits are no distribution (NaN or infinite): nothing can be drawn")
        uniform_b1 = torch.rand(total_b1.shape, generator=self._generator, dtype=torch.float64, device="cpu")
        drawn_b1 = (uniform_b1 * total_b1).to(torch.int64).to(cdf_bv.device)
        # right=True: the first token whose sum exceeds the number, never one of probability 0.
        token_b1 = torch.searchsorted(cdf_bv, drawn_b1, right=True).clamp_(max=cdf_bv.shape[1] - 1)
        return torch.full_like(scores_bv, -torch.inf).scatter_(1, token_b1, 0.0)


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """A model's inputs: rows (b, t) with their ends aligned, and their mask."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    ids_bt, mask_bt = (torch.tensor(part, dtype=torch.int64, device=device) for part in (ids, mask))
    return {"input_ids": ids_bt, "attention_mask": mask_bt}


def _grouped(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
