"""Tiny models, probes and a tokenizer, made in milliseconds from nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from geomcallbacks import ProbeSet, Schedule

VOCABULARY = 120
WINDOW = (2, 8)  # fits d = 16

_SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
CONFIGS = {
    "gpt_neox": lambda **x: GPTNeoXConfig(**_SHAPE, **x),
    "olmo2": lambda **x: Olmo2Config(**_SHAPE, **x),
    "llama": lambda **x: LlamaConfig(**_SHAPE, **x),
    "qwen3": lambda **x: Qwen3Config(**_SHAPE, num_key_value_heads=2, head_dim=8, **x),
    "gemma3": lambda **x: Gemma3TextConfig(**_SHAPE, num_key_value_heads=2, head_dim=8, **x),
    "gpt2": lambda **x: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2, **x
    ),
}


def model(kind: str = "gpt_neox", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of d = 16 and three blocks, in training mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[kind](**changes)).train()


def watching(**changes: Any) -> dict[str, Any]:
    """Settings of a callback that measures `model` every second update and hides no failure."""
    return {"alpha_window": WINDOW, "schedule": Schedule(every=2, per_decade=0), "on_error": "raise"} | changes


def rows(n: int = 64, t: int = 20, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token rows (n, t) of 8 to t real tokens, right-padded with 0, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids_nt = torch.randint(3, VOCABULARY, (n, t), generator=generator)
    lengths_n = torch.randint(8, t + 1, (n,), generator=generator)
    mask_nt = (torch.arange(t) < lengths_n[:, None]).long()
    return ids_nt * mask_nt, mask_nt


def probe(n: int = 64, t: int = 20, seed: int = 1) -> ProbeSet:
    """A probe of `rows`."""
    return ProbeSet.from_token_ids(*rows(n, t, seed))


def tokenizer(eos: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of "w0" … "w99", which puts BOS in front and, if asked, EOS behind."""
    words = ["<pad>", "<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(VOCABULARY - 4)]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def texts(n: int = 100, words: int = 40, seed: int = 2) -> list[str]:
    """Random texts in the words of `tokenizer`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY - 4, (n, words), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in row) for row in ids]


def random_states() -> tuple[object, ...]:
    """Every global random state of a CPU process, comparable with ==."""
    kind, keys, *rest = np.random.get_state()
    return tuple(torch.get_rng_state().tolist()), kind, tuple(keys.tolist()), tuple(rest), random.getstate()
