"""What is read is what the model itself calls its hidden states, whatever the model is wrapped in."""

from __future__ import annotations

import copy
import shutil

import peft
import pytest
import tiny
import torch
from accelerate import cpu_offload
from states import hooks_of, last_states, own_states, proven, read, read_by
from torch import Tensor, nn

from geomcallbacks import ProbeSet
from geomcallbacks.reading.locate import blocks_of, unwrap


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == list(wanted)
    assert all(torch.equal(got[label], wanted[label]) for label in wanted)


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_layers_are_the_models_hidden_states(kind: str) -> None:
    """Of rows of differing length. That left padding gives the same rows is held by test_probe."""
    model = tiny.model(kind)
    ids_nt, mask_nt = tiny.rows(20)
    states = own_states(model, ids_nt, mask_nt)
    features = read(model, ProbeSet.from_token_ids(ids_nt, mask_nt), layers=[0, 1, 2, 3])
    assert list(features) == ["layer0", "layer1", "layer2", "layer3"]
    for layer, got_nd in enumerate(features.values()):
        wanted_nd = last_states(states[layer])
        torch.testing.assert_close(got_nd, wanted_nd, rtol=0, atol=1e-5)
        assert wanted_nd.std() > 10 * 1e-5


def test_layers_by_number_and_by_name() -> None:
    model, probe = tiny.model("llama"), tiny.probe(8)
    for index, same in ((-1, "layer3"), (-2, "layer2"), (-4, "layer0"), (3, "layer3")):
        assert list(read(model, probe, layers=index)) == [same]
    features = read(model, probe, layers=["model.layers.0", 1, "model.norm", 3])
    assert list(features) == ["model.layers.0", "layer1", "model.norm", "layer3"]
    assert torch.equal(features["model.layers.0"], features["layer1"])
    assert torch.equal(features["model.norm"], features["layer3"])
    assert_equal(read(model.model, probe), {"layer3": features["layer3"]})  # a backbone without a head


@pytest.mark.parametrize(("layers", "run"), [(0, 1), (1, 1), ([0, 2], 2), (3, 3), (-1, 3), ([1, "norm"], 3)])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_blocks_behind_the_deepest_layer_do_not_run(kind: str, layers: object, run: int) -> None:
    """Layer 0 is what enters the first block, which begins; a module that is named may run again."""
    model = tiny.model(kind)
    if layers == [1, "norm"]:
        layers = [1, {"llama": "model.norm", "gpt_neox": "gpt_neox.final_layer_norm", "gpt2": "transformer.ln_f"}[kind]]
    wanted = read(model, tiny.probe(8), [0, 1, 2, 3])
    reader, begun = proven(model, tiny.probe(8), layers), []
    for index, block in enumerate(blocks_of(model)):
        block.register_forward_pre_hook(lambda module, args, index=index: begun.append(index))
    got = read_by(reader, tiny.probe(8))
    assert begun == list(range(run))
    assert all(torch.equal(got[label], wanted[label]) for label in wanted.keys() & got.keys())


def test_neither_head_nor_cache_is_computed() -> None:
    model, seen = tiny.model("llama"), []
    reader = proven(model, tiny.probe(8))
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append("head"))
    model.model.register_forward_hook(lambda module, args, output: seen.append(output.past_key_values))
    read_by(reader, tiny.probe(8))
    assert seen == [None]


@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_is_given_where_there_is_padding(padded: bool) -> None:
    model, seen, (ids_nt, mask_nt) = tiny.model("llama"), [], tiny.rows(8)
    probe = ProbeSet.from_token_ids(ids_nt, mask_nt if padded else None)
    reader = proven(model, probe)
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    read_by(reader, probe)
    assert [mask is not None for mask in seen] == [padded]


# --- positions ----------------------------------------------------------------------------------------------------


class Echo(nn.Module):
    """Its states are (token, position), so that what was picked can be read off; `spoilt`, not where none may be."""

    def __init__(self, spoilt: bool = False) -> None:
        super().__init__()
        self.inner, self.spoilt = nn.Identity(), spoilt

    def forward(self, ids_bt: Tensor, attention_mask: Tensor) -> Tensor:
        states = torch.stack([ids_bt, torch.arange(ids_bt.shape[1]).expand_as(ids_bt)], -1).float()
        if self.spoilt:  # infinite in an attention sink, and not a number behind the end of a row
            states[:, 0] = torch.inf
            states = states.masked_fill(attention_mask[..., None] == 0, torch.nan)
        return self.inner(states)


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("last", [(7, 2), (15, 5), (23, 3)]),
        (1, [(7, 2), (15, 5), (23, 3)]),
        (2, [(6, 1), (7, 2), (12, 2), (15, 5), (21, 1), (23, 3)]),
        ("all", [(6, 1), (7, 2), *[(10 + i, i) for i in range(1, 6)], (21, 1), (22, 2), (23, 3)]),
        ("mean", [(6.5, 1.5), (13, 3), (22, 2)]),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_positions_by_hand(positions: object, wanted: list[tuple[float, float]], batch_size: int) -> None:
    probe = ProbeSet.from_token_ids([[5, 6, 7], [10, 11, 12, 13, 14, 15], [20, 21, 22, 23]])
    for model in (Echo(), Echo(spoilt=True)):
        got = read(model, probe, layers="inner", positions=positions, batch_size=batch_size)["inner"]
        assert [tuple(row) for row in got.tolist()] == wanted


def test_mean_position_is_not_rounded_by_autocast() -> None:
    """Under the trainer's bf16 autocast the states are what they are, but their mean is no part of the model."""
    model, probe = tiny.model("gpt2"), tiny.probe(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        every_md = read(model, probe, 1, "all")["layer1"]
        mean_nd = read(model, probe, 1, "mean")["layer1"]
    wanted = [part.mean(0) for part in every_md.split((probe.lengths_n - 1).tolist())]
    torch.testing.assert_close(mean_nd, torch.stack(wanted), rtol=0, atol=1e-6)


# --- models and what is wrapped around them -----------------------------------------------------------------------


@pytest.mark.parametrize("target", ["query_key_value", "dense_4h_to_h"])
def test_lora_model(target: str) -> None:
    base, probe = tiny.model(), tiny.probe(12)
    plain = read(base, probe, [1, -1])
    config = peft.LoraConfig(
        r=2, target_modules=[target], init_lora_weights=False, lora_dropout=0.5, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config)
    states = own_states(model, *tiny.rows(12))
    adapted = read(model, probe, [1, -1])
    assert list(adapted) == list(plain) == ["layer1", "layer3"]
    for layer, label in ((1, "layer1"), (3, "layer3")):
        torch.testing.assert_close(adapted[label], last_states(states[layer]), rtol=0, atol=1e-5)
        assert (adapted[label] - plain[label]).abs().max() > 1e-3
    with model.disable_adapter():
        assert_equal(read(model, probe, [1, -1]), plain)


def test_model_inside_a_lightning_module() -> None:
    lightning = pytest.importorskip("lightning")
    module, probe = lightning.LightningModule(), tiny.probe(8)
    module.loss, module.network = nn.CrossEntropyLoss(), nn.ModuleDict({"lm": tiny.model("olmo2")})
    wanted = read(module.network["lm"], probe, [0, -1])
    assert_equal(read(module, probe, [0, -1]), wanted)
    assert_equal(read(nn.DataParallel(module), probe, [0, -1]), wanted)
    assert proven(module, probe).points[0].name == "network.lm.model"


@pytest.mark.parametrize("whole", [None, ["LlamaModel"]], ids=["layer by layer", "as a whole"])
def test_what_accelerate_brings_in_goes_out_again(whole: list[str] | None) -> None:
    """A model whose weights lie elsewhere between passes is run to its end, so that each hook sees it."""
    model, probe = tiny.model("llama"), tiny.probe(8)
    wanted = read(model, probe, 1)
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"), preload_module_classes=whole)
    assert all(p.is_meta for p in offloaded.model.layers.parameters())
    assert_equal(read(offloaded, probe, 1), wanted)
    assert all(p.is_meta for p in offloaded.model.layers.parameters())


class Plain(nn.Module):
    """A model of no library."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(tiny.VOCABULARY, 6)
        self.mix = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, tiny.VOCABULARY)

    def forward(self, ids_bt: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(ids_bt))[0])


def test_plain_module_by_name() -> None:
    model, probe = Plain(), tiny.probe(9)
    by_layer = read(model, probe, layers=["embed", "mix"])
    assert torch.equal(by_layer["mix"], read(model, probe, module="mix")["mix"])
    last_n = probe.input_ids_nt[torch.arange(9), probe.lengths_n - 1]
    assert torch.equal(by_layer["embed"], model.embed(last_n).detach().double())
    wanted = [model.mix(model.embed(probe.input_ids_nt[i, :n]))[0][-1] for i, n in enumerate(probe.lengths_n.tolist())]
    torch.testing.assert_close(by_layer["mix"], torch.stack(wanted).detach().double(), rtol=0, atol=1e-6)
    assert_equal(read(model, probe, ["embed", "mix"], forward=lambda called, ids, mask: called(ids)), by_layer)


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_one_of_two_models_by_name(name: str) -> None:
    two, probe = nn.ModuleDict({"policy": tiny.model("llama"), "reference": tiny.model("llama", seed=1)}), tiny.probe(8)
    assert_equal(read(two, probe, [1, -1], module=name), read(two[name], probe, [1, -1]))


def test_unwrap_goes_through_every_wrapper() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(nn.DataParallel(torch.compile(nn.DataParallel(model)))) is model


# --- torch.compile ------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("how", ["wrapped", "block by block"])
def test_compiled_model(how: str) -> None:
    """Also after the first compiled call, and without a training graph compiled again.

    The backend captures forward and backward, and generates no code: that takes a minute for this model.
    """
    model = tiny.model("llama")
    plain, (ids_nt, mask_nt) = copy.deepcopy(model), tiny.rows(4, 12)
    if how == "wrapped":
        model = torch.compile(model, backend="aot_eager")
    else:
        for index, block in enumerate(model.model.layers):
            model.model.layers[index] = torch.compile(block, backend="aot_eager")
    train = lambda: model(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss
    before = train()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    wanted = read(plain, tiny.probe(8), [0, 2, -1])
    for _ in range(2):
        got = read(model, tiny.probe(8), [0, 2, -1])
        for label in wanted:
            torch.testing.assert_close(got[label], wanted[label], rtol=0, atol=1e-6)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(train(), before)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert all(module.training for module in model.modules())
    assert hooks_of(model) == 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default backend needs a C++ compiler")
@pytest.mark.usefixtures("_fresh_compiler")
def test_model_compiled_in_place_by_the_default_backend() -> None:
    """Generated code, between whose calls is measured without a graph of its own."""
    model, probe = nn.Sequential(nn.Embedding(tiny.VOCABULARY, 6), nn.Linear(6, 6)), tiny.probe(8)
    wanted = read(copy.deepcopy(model), probe, "0")
    model.compile()
    before = model(probe.input_ids_nt).sum()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_equal(read(model, probe, "0"), wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        after = model(probe.input_ids_nt).sum()
    after.backward()
    assert torch.equal(after, before)
    assert model[0].weight.grad is not None


def test_flex_attention_is_read_right_and_compiles_nothing() -> None:
    """It compiles itself when it is called, for the shapes and the mode in which it is called."""
    wanted = read(tiny.model("llama"), tiny.probe(8), [1, -1])
    model, compiled = tiny.model("llama", attn_implementation="flex_attention"), torch._dynamo.utils.counters["stats"]
    before = compiled["unique_graphs"]
    got = read(model, tiny.probe(8), [1, -1])
    assert compiled["unique_graphs"] == before
    for label, states in wanted.items():
        torch.testing.assert_close(got[label], states, rtol=0, atol=1e-5)
    assert "Lower batch_size" in proven(model, tiny.probe(8)).remarks[0]
