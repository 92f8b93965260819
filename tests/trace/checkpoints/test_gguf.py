"""A GGUF file as a checkpoint: Transformers turns it back into the model, where the package `gguf` is there."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.cli import main
from geomcallbacks.trace import Reading, trace

SETTINGS = {"alpha_window": tiny.WINDOW}
#: llama.cpp's names of a Llama's tensors.
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(file: Path, model: Any) -> None:
    """Write a Llama as llama.cpp's convert script does, rotary halves interleaved."""
    import gguf

    config, words = model.config, ["<unk>", "<s>", "</s>", "▁", *"w0123456789"]
    words += [f"<{i}>" for i in range(config.vocab_size - len(words))]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3, *[1] * (len(words) - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in model.state_dict().items():
        name, block = key.removesuffix(".weight"), ""
        if name.startswith("model.layers."):
            _, _, index, name = name.split(".", 3)
            block = f"blk.{index}."
        weight = value.numpy()
        if name.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{block}{_NAMES[name]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_measured_with_the_tokenizer_in_it(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = tiny.model("llama")
    write_gguf(tmp_path / "model-f32.gguf", model)
    (live,) = GeometryMonitor(tiny.probe(), **SETTINGS).measure(model, 0)
    for given in (tmp_path / "model-f32.gguf", tmp_path):
        out = tmp_path / f"{given.name}.jsonl"
        trace(given, probes=tiny.probe(), settings=SETTINGS, out=out, reading=Reading(device="cpu"))
        assert read_records(out)[0]["rankme"] == pytest.approx(live.metrics["rankme"], rel=1e-6)
    (tmp_path / "texts.txt").write_text("\n\n".join(tiny.texts(80)))
    options = [
        "--probe-rows",
        "15",
        "--alpha-window",
        "2",
        "8",
        "--out",
        str(tmp_path / "text.jsonl"),
        "--device",
        "cpu",
    ]
    assert main(["trace", str(tmp_path), "--probe", str(tmp_path / "texts.txt"), *options]) == 0
    assert read_records(tmp_path / "text.jsonl")[0]["n"] == 15


@pytest.mark.skipif(importlib.util.find_spec("gguf") is not None, reason="the package gguf is there")
def test_without_the_package_a_gguf_file_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    arguments = {"probes": tiny.probe(), "settings": SETTINGS, "reading": Reading(device="cpu")}
    summary = trace(tmp_path / "model.gguf", **arguments)
    (reason,) = summary.failed.values()
    assert reason.endswith("pip install gguf")
