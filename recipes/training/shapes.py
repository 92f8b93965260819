"""The model that is trained: Pythia-shaped, OLMo-2-shaped, or any configuration that Transformers knows."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    Olmo2Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def build_model(settings: Any, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
    """Return a model with random weights, drawn from the global seed.

    Args:
        settings: ``architecture``, ``hidden_size``, ``layers``, ``heads``; or ``model_config``, a hub name, a
            folder or a JSON file, which replaces them. ``tokenizer``: None where it was trained here.
        tokenizer: Gives the vocabulary where it was trained here; otherwise the configuration's own
            vocabulary stays if it is large enough (Pythia's is padded beyond its tokenizer).
        positions: Tokens of the longest row; the model is made to reach so far.

    Raises:
        ValueError: The configuration is not one that Transformers can build a causal model of.
    """
    if settings.model_config:
        config = AutoConfig.from_pretrained(settings.model_config, trust_remote_code=False)
    else:
        config = _small_config(settings)
    keeps_vocabulary = settings.tokenizer is not None and settings.model_config is not None
    config.vocab_size = max(config.vocab_size, len(tokenizer)) if keeps_vocabulary else len(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.max_position_embeddings = max(config.max_position_embeddings, positions)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)


def _small_config(settings: Any) -> PretrainedConfig:
    if settings.hidden_size % settings.heads:
        raise ValueError(f"hidden_size={settings.hidden_size} is not a multiple of heads={settings.heads}; change one")
    kind = {"neox": GPTNeoXConfig, "olmo2": Olmo2Config}[settings.architecture]
    return kind(
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
