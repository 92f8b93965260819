"""What cannot be read is refused with a remedy."""

from __future__ import annotations

import peft
import pytest
import tiny
from states import hooks_of, read
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from geomcallbacks.reading.locate import refuse_sharded
from geomcallbacks.reading.reader import Reader
from geomcallbacks.reading.sharding import entry_of


class Plain(nn.Module):
    """A model of no library."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.pool = nn.Embedding(tiny.VOCABULARY, 6), nn.Linear(6, 6), nn.Identity()

    def forward(self, ids_bt: Tensor) -> Tensor:
        return self.pool(self.mix(self.embed(ids_bt)).mean(1))


class FullyShardedDataParallel(nn.Sequential):
    """Named as FSDP1's wrapper, which needs a process group."""


def two() -> nn.Module:
    return nn.ModuleDict({"policy": tiny.model("llama"), "reference": tiny.model("llama")})


def encoder_decoder() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def of_zero3() -> nn.Module:
    """As ZeRO-3 marks it, without the hooks that gather it."""
    model = tiny.model()
    next(model.parameters()).ds_id = 0
    return model


def with_prompt() -> nn.Module:
    return peft.get_peft_model(tiny.model(), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reader(tiny.model("llama"), "model.layer.1"), r"layers='model.layer.1' is no.*'model.layers.1'"),
        (lambda: Reader(Plain(), "zzzzzzzz"), r"layers='zzzzzzzz' is no submodule of Plain: it has embed, mix, pool"),
        (lambda: Reader(two(), module="polcy"), r"module='polcy' is no submodule of ModuleD.*: did you mean 'policy'"),
        (lambda: Reader(two()), r"ModuleDict holds 2 language models: choose one, module='policy' .*module='refer"),
        (lambda: read(Plain(), tiny.probe(4)), r"no causal language model in Plain: name.*=<name>, of.*embed \(Emb"),
        (lambda: read(nn.ReLU(), tiny.probe(4)), r"no causal language model in ReLU.*of none"),
        (lambda: Reader(encoder_decoder()), r"T5ForConditionalGeneration is an encoder-decoder: only causal"),
        (lambda: read(tiny.model(), tiny.probe(4), 4), r"layers=4 is not in GPTNeoX.*, which has 3 blocks.*give -4 to"),
        (lambda: Reader(tiny.model(), []), r"layers=\[\] reads nothing: give a layer"),
        (lambda: read(tiny.model(), tiny.probe(4), [3, -1]), r"layers=\[3, -1\] names a layer twice \(layer3, lay"),
        (lambda: Reader(Plain(), 2, module="mix"), r"layers=2 counts blocks, which Linear has not: name a submodule"),
        (lambda: Reader(FullyShardedDataParallel(tiny.model())), r"shard by fully_shard \(fsdp_version: 2\)"),
        (lambda: Reader(with_prompt()), r"learns virtual tokens, .*use weights such as LoRA"),
        (lambda: entry_of(of_zero3(), tiny.model()), r"has no hook that begins a pass: give DeepSpeed's own engine"),
        (lambda: entry_of(nn.Sequential(of_zero3()), tiny.model()), r"Sequential, part.*takes no input_ids: let"),
        (lambda: refuse_sharded(of_zero3()), r"sharded over processes: trace its checkpoints"),
        (lambda: read(tiny.model("llama"), tiny.probe(4), "lm_head"), r"layer 'lm_head' was not reached.*forward="),
    ],
)  # fmt: skip
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_layer_that_gives_no_states_is_refused() -> None:
    model = Plain()
    with pytest.raises(ValueError, match=r"layer 'pool' gives \(1, 6\), not states of shape \(1, \d+, 'd'\)"):
        read(model, tiny.probe(4), "pool")
    assert hooks_of(model) == 0
