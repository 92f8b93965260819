"""The causal language model classes of the installed Transformers, shrunk by the names of their configs' numbers."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

VOCABULARY, WIDTH, HEADS, DEPTH = 128, 32, 4, 4
LIMIT = 20_000_000  # parameters: what is larger was not shrunk

#: What each number of a config becomes, by the first pattern that its whole name fits. None: left as it is.
RULES: list[tuple[str, int | None]] = [
    (r".*(token_id|_index|_idx|_offset|_period|_multiplier|_factor|interval|_stride|_bits|num_labels)s?", None),
    (r"index_topk", None),
    (r"(use|is|has|chunk|output|add|tie|scale|enable|do|apply|norm|return)_.*", None),
    (r".*vocab_size.*", VOCABULARY),
    (r"(num_)?(hidden_|decoder_|encoder_|n_)?(layers?|blocks)|n_?layers?|num_(hidden|decoder|encoder)_(layers|blocks)"
     , DEPTH),
    (r"(num_)?nextn_predict_layers|num_mtp.*|first_k_dense_replace|mlp_only_layers", None),
    (r".*(num_key_value_heads|n_head_kv|num_kv_heads|num_key_value_head|n_kv_heads|kv_heads)", 2),
    (r".*(n_?group|topk_group|num_expert_groups?|n_groups)", 1),
    (r".*(experts_per_tok|top_?k|num_selected_experts|experts_topk|moe_k)(_experts)?.*", 2),
    (r".*n_shared_experts|num_shared_experts?", 1),
    (r".*(num|n)_?.*experts.*", 4),
    (r".*(head_dim|head_size|rotary_dim|qk_nope.*|qk_rope.*|v_head.*|d_kv|attention_key_value_channels|rope_dim)", 8),
    (r".*(num|n)_?.*heads?|.*attention_heads", HEADS),
    (r".*lora_rank.*|.*_rank", 8),
    (r".*(intermediate|ffn|ff|inner|feed_forward|mlp|ffn_hidden)_?(size|dim|hidden|length)?(_.*)?|d_ff|n_inner"
     r"|.*_ffn_.*", 64),
    (r".*(position_embeddings|n_positions|max_seq(_)?len(gth)?|context_length|n_ctx|seq_length|max_sequence_length)"
     , 128),
    (r".*(hidden_size|hidden_dim|d_model|n_embd|emb_dim|embed_dim|embedding_size|embedding_dim|model_dim|lru_width"
     r"|word_embed_proj_dim|width|hidden_units)", WIDTH),
    (r".*(image_size|sample_size)", 32),
    (r".*patch_size", 16),
]  # fmt: skip
#: Numbers that some configs leave to be worked out, and some models do not work out.
UNSET = {"head_dim": 8, "num_key_value_heads": 2}
_MLA = {"num_key_value_heads": HEADS}
#: What no rule of names can know, by model type.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu", "axk1",
         "axk2", "dots3_note", "longcat_flash"), _MLA),
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], DEPTH // 2]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 16)},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (DEPTH // 2)},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * (DEPTH // 2)},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


def classes() -> list[str]:
    """The names of the causal language model classes, and of those that take images or sound besides text."""
    mappings = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )
    return list(dict.fromkeys(name for names in mappings for name in names.values() if isinstance(name, str)))


def changes(config: PreTrainedConfig) -> dict[str, Any]:
    """What is given to a config's class to have it small."""
    found: dict[str, Any] = {}
    given = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    for key, value in given.items():
        if isinstance(value, PreTrainedConfig):
            found[key] = changes(value) | ({"model_type": value.model_type} if value.model_type else {})
        elif isinstance(value, int) and not isinstance(value, bool):
            if key.endswith("token_id") and value >= VOCABULARY:
                found[key] = 3
            number = next((number for pattern, number in RULES if re.fullmatch(pattern, key)), None)
            if number is not None:
                found[key] = number
        elif value is None and key in UNSET:
            found[key] = UNSET[key]
    return found | OWN.get(config.model_type, {})


def build(name: str) -> PreTrainedModel:
    """A small random model of this class in evaluation mode, in float32."""
    kind = getattr(transformers, name)
    config = kind.config_class(**changes(kind.config_class()))
    with torch.device("meta"):
        count = sum(p.numel() for p in kind(config).parameters())
    if count > LIMIT:
        raise ValueError(f"{count:,} parameters: not shrunk enough")
    torch.manual_seed(0)
    return kind(config).eval()
