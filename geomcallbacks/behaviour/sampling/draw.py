"""What a model writes: completions drawn from it, leaving no trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomcallbacks.behaviour.arguments import check_positive, check_texts
from geomcallbacks.behaviour.evaluating import check_tokens, evaluating
from geomcallbacks.behaviour.rows.token_ids import encode_prompts
from geomcallbacks.reading.device import device_of


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

    Random numbers come from a private generator. Model, tokenizer, generation settings and every random state are
    left as they were. The same arguments give the same completions; another `batch_size` gives others.

    Args:
        model: a causal language model of Transformers, wrapped or not.
        tokenizer: its tokenizer; it is copied, not changed. Its EOS ends a completion.
        prompts: texts, with BOS as the tokenizer adds it.
        samples: completions of each prompt.
        max_new_tokens: most tokens of a completion.
        temperature: divides the logits.
        seed: of the private generator.
        batch_size: completions that are drawn together.

    Raises:
        TypeError, ValueError: an argument is wrong by itself, or model and prompts do not fit.
        RuntimeError: the model gives logits that are no distribution.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    check_sampling(samples, max_new_tokens, temperature, batch_size)
    check_texts("prompts", prompts)
    encoded = encode_prompts(prompts, tokenizer)
    check_prompts(model, encoded, max_new_tokens)
    prompt_ids = [row for row in encoded for _ in range(samples)]
    eos = tokenizer.eos_token_id
    pad = next((token for token in (tokenizer.pad_token_id, eos) if token is not None), 0)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad, use_cache=True
    )
    # By length, so that a batch has little padding.
    order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
    drawn: list[list[int]] = [[] for _ in order]
    with evaluating(model) as language_model:
        device = device_of(language_model)
        # What ours leaves unset would be filled in from the model's own, penalties included; put back on leaving.
        language_model.generation_config = GenerationConfig()
        processors = LogitsProcessorList([_Draw(temperature, seed, device)])
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = _left_padded([prompt_ids[row] for row in batch], pad, device)
            out_bt = language_model.generate(**inputs, generation_config=settings, logits_processor=processors)
            for row, tokens in zip(batch, out_bt[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                drawn[row] = tokens[: tokens.index(eos)] if eos in tokens else tokens
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


class _Draw:
    """Puts all probability on one token, drawn from the scores: a logits processor ahead of greedy decoding.

    By inverting the cumulative distribution with a uniform number for each row. `torch.multinomial`, which `generate`
    itself would use, draws a number for each token of the vocabulary: with 2,048 of them on a CPU that took half the
    time of a tiny model's decoding.
    """

    def __init__(self, temperature: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids_bt: Tensor, scores_bv: Tensor) -> Tensor:
        # float64: in float32 the sum over a large vocabulary rounds its rare tokens away.
        cdf_bv = torch.softmax(scores_bv.float() / self._temperature, dim=-1).cumsum(-1, dtype=torch.float64)
        total_b1 = cdf_bv[:, -1:]
        if not bool(torch.isfinite(total_b1).all()):
            raise RuntimeError("the model's logits are no distribution (NaN or infinite): nothing can be drawn")
        uniform_b1 = torch.rand(total_b1.shape, generator=self._generator, dtype=torch.float64, device=cdf_bv.device)
        # right=True: the first token whose sum exceeds the number, never one of probability 0.
        token_b1 = torch.searchsorted(cdf_bv, uniform_b1 * total_b1, right=True).clamp_(max=cdf_bv.shape[1] - 1)
        return torch.full_like(scores_bv, -torch.inf).scatter_(1, token_b1, 0.0)


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """A model's inputs: rows (b, t) with their ends aligned, and their mask."""
    width = max(map(len, rows))
    ids_bt = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask_bt = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids_bt, "attention_mask": mask_bt}


def _grouped(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
