"""What is read is what the model itself calls its hidden states, and reading leaves nothing behind."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.probing.positions import check_positions, position_count, position_index
from geomcallbacks.reading.locate import blocks_of, refuse_sharded, unwrap
from geomcallbacks.reading.no_trace import leave_no_trace
from geomcallbacks.reading.reader import Reader
from geomcallbacks.reading.sharding import entry_of
from geomcallbacks.spectra.moments import Rows


def read(
    model: nn.Module, probe: ProbeSet, layers: object = -1, positions: object = "last", batch_size: int = 16, **where
) -> dict[str, Tensor]:
    """Features (n, d) by layer, in the order of the probe's rows."""
    reader = Reader(model, layers, **where)
    stores: dict[str, Rows] = {}
    with leave_no_trace(reader.called):
        for batch in probe.batches(batch_size):
            features, origin = reader.read(batch, positions)
            for label, feature_md in features.items():
                stores.setdefault(label, Rows(feature_md.shape[1])).update(feature_md, origin)
    return {label: store.stacked()[0] for label, store in stores.items()}


def own_states(model: nn.Module, ids_nt: Tensor, mask_nt: Tensor) -> list[list[Tensor]]:
    """By the model's own account: for each layer 0…L the states (length, d) of each row's real tokens."""
    model = copy.deepcopy(model).eval()
    position_nt = (mask_nt.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(ids_nt, attention_mask=mask_nt, position_ids=position_nt, output_hidden_states=True)
    return [
        [row.double()[real] for row, real in zip(layer, mask_nt.bool(), strict=True)] for layer in out.hidden_states
    ]


def left_padded(ids_nt: Tensor, mask_nt: Tensor) -> tuple[Tensor, Tensor]:
    shift = [int(n) for n in ids_nt.shape[1] - mask_nt.sum(1)]
    rolled = [[x.roll(s) for x, s in zip(tensor, shift, strict=True)] for tensor in (ids_nt, mask_nt)]
    return torch.stack(rolled[0]), torch.stack(rolled[1])


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_layers_are_the_models_hidden_states(kind: str, side: str) -> None:
    model = tiny.model(kind)
    ids_nt, mask_nt = tiny.rows(20)
    if side == "left":
        ids_nt, mask_nt = left_padded(ids_nt, mask_nt)
        assert mask_nt[:, -1].all()
    states = own_states(model, ids_nt, mask_nt)
    features = read(model, ProbeSet.from_token_ids(ids_nt, mask_nt), layers=[0, 1, 2, 3])
    assert list(features) == ["layer0", "layer1", "layer2", "layer3"]
    for layer, got_nd in enumerate(features.values()):
        wanted_nd = torch.stack([row[-1] for row in states[layer]])
        torch.testing.assert_close(got_nd, wanted_nd, rtol=0, atol=1e-5)
        assert wanted_nd.std() > 10 * 1e-5


@pytest.mark.parametrize(("index", "same"), [(-1, "layer3"), (-2, "layer2"), (-4, "layer0"), (3, "layer3")])
def test_negative_layers_count_from_the_end(index: int, same: str) -> None:
    model, probe = tiny.model(), tiny.probe(8)
    assert list(read(model, probe, layers=index)) == [same]


def test_named_layer_of_a_language_model_is_its_output() -> None:
    model, probe = tiny.model("llama"), tiny.probe(8)
    features = read(model, probe, layers=["model.layers.0", 1, "model.norm", 3])
    assert list(features) == ["model.layers.0", "layer1", "model.norm", "layer3"]
    assert torch.equal(features["model.layers.0"], features["layer1"])
    assert torch.equal(features["model.norm"], features["layer3"])


class Echo(nn.Module):
    """Its states are (token, position, row length), so that what was selected can be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, ids_bt: Tensor, attention_mask: Tensor) -> Tensor:
        position_bt = torch.arange(ids_bt.shape[1]).expand_as(ids_bt)
        length_bt = attention_mask.sum(1, keepdim=True).expand_as(ids_bt)
        return self.inner(torch.stack([ids_bt, position_bt, length_bt], -1).float())


ECHO_ROWS = [[5, 6, 7], [10, 11, 12, 13, 14, 15], [20, 21, 22, 23]]


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
    probe = ProbeSet.from_token_ids(ECHO_ROWS)
    got = read(Echo(), probe, layers="inner", positions=positions, batch_size=batch_size)["inner"]
    assert [tuple(row) for row in got[:, :2].tolist()] == wanted
    assert int(position_count(probe.lengths_n, positions).sum()) == len(wanted)


@pytest.mark.parametrize(
    ("length", "k", "wanted"),
    [(10, 3, [3, 6, 9]), (8, 4, [1, 3, 5, 7]), (5, 4, [1, 2, 3, 4]), (7, 1, [6]), (7, 5, [1, 2, 4, 5, 6]), (2, 1, [1])],
)
def test_position_index_by_hand(length: int, k: int, wanted: list[int]) -> None:
    assert position_index(torch.tensor([length]), k).tolist() == [wanted]


def test_position_zero_is_never_taken_and_none_twice() -> None:
    for k in range(1, 40):
        for row in position_index(torch.arange(k + 1, 80), k).tolist():
            assert row[0] > 0
            assert len(set(row)) == k


@pytest.mark.parametrize("positions", ["first", 0, -1, True, 1.5, None, ["last"]])
def test_unknown_positions_are_refused(positions: object) -> None:
    with pytest.raises(ValueError, match=r"positions=.* is unknown: give 'last', 'all', 'mean' or a positive number"):
        check_positions(positions)


def test_rows_too_short_for_k_positions_are_refused() -> None:
    check_positions(2, torch.tensor([3, 9]))
    with pytest.raises(ValueError, match=r"positions=3 needs rows of at least 4 tokens.*one of 3.*min_length=4"):
        check_positions(3, torch.tensor([9, 3]))


@pytest.mark.parametrize("positions", ["last", 3, "all", "mean"])
def test_positions_of_a_language_model(positions: object) -> None:
    model, (ids_nt, mask_nt) = tiny.model("gpt2"), tiny.rows(12)
    states = own_states(model, *left_padded(ids_nt, mask_nt))[2]
    wanted = []
    for row in states:
        if positions == "mean":
            wanted.append(row[1:].mean(0, keepdim=True))
        elif positions == "all":
            wanted.append(row[1:])
        else:
            k = 1 if positions == "last" else positions
            wanted.append(torch.stack([row[-(-len(row) * j // k) - 1] for j in range(1, k + 1)]))
    got_nd = read(model, ProbeSet.from_token_ids(ids_nt, mask_nt), 2, positions)["layer2"]
    torch.testing.assert_close(got_nd, torch.cat(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["query_key_value", "dense_4h_to_h"])
def test_lora_model(target: str) -> None:
    peft = pytest.importorskip("peft")
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
        torch.testing.assert_close(adapted[label], torch.stack([r[-1] for r in states[layer]]), rtol=0, atol=1e-5)
        assert (adapted[label] - plain[label]).abs().max() > 1e-3
    with model.disable_adapter():
        disabled = read(model, probe, [1, -1])
    for label, feature_nd in plain.items():
        assert torch.equal(disabled[label], feature_nd)
    assert torch.equal(read(model, probe)["layer3"], adapted["layer3"])


def test_prompt_tuning_is_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"learns virtual tokens in front of the text.*LoRA"):
        Reader(peft.get_peft_model(tiny.model(), config))


def test_model_inside_a_lightning_module() -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.CrossEntropyLoss()
            self.network = nn.ModuleDict({"lm": tiny.model("olmo2")})

    module, probe = Module(), tiny.probe(8)
    wanted = read(module.network["lm"], probe, [0, -1])
    got = read(module, probe, [0, -1])
    assert [torch.equal(got[label], wanted[label]) for label in wanted] == [True, True]
    assert Reader(module).points[0].name == "network.lm.model"
    assert torch.equal(read(nn.DataParallel(module), probe)["layer3"], wanted["layer3"])


def test_what_stands_in_padding_and_at_position_zero_does_not_matter() -> None:
    """Infinite in an attention sink, say, or not a number behind the end of a row."""

    class Spoilt(Echo):
        def forward(self, ids_bt: Tensor, attention_mask: Tensor) -> Tensor:
            states = super().forward(ids_bt, attention_mask)
            states[:, 0] = torch.inf
            return self.inner(states.masked_fill(attention_mask[..., None] == 0, torch.nan))

    probe = ProbeSet.from_token_ids(ECHO_ROWS)
    for positions in ("last", 2, "all", "mean"):
        got, wanted = (read(model, probe, "inner", positions)["inner"] for model in (Spoilt(), Echo()))
        assert torch.equal(got, wanted)


def test_backbone_without_a_head() -> None:
    model, probe = tiny.model("qwen3"), tiny.probe(8)
    assert torch.equal(read(model.model, probe)["layer3"], read(model, probe)["layer3"])


def compiled(how: str) -> tuple[nn.Module, nn.Module]:
    """A compiled model, and the same weights uncompiled."""
    model = tiny.model("llama")
    plain = copy.deepcopy(model)
    if how == "wrapped":
        return torch.compile(model, backend="eager"), plain
    if how == "in place":
        model.compile(backend="eager")
    elif how == "backbone in place":
        model.model.compile(backend="eager")
    elif how == "block by block":
        for index, block in enumerate(model.model.layers):
            model.model.layers[index] = torch.compile(block, backend="eager")
    else:
        for block in model.model.layers:
            block.compile(backend="eager")
    return model, plain


@pytest.mark.parametrize("how", ["wrapped", "in place", "backbone in place", "block by block", "blocks in place"])
def test_compiled_model(how: str) -> None:
    """Also after the first compiled call, and without a training graph compiled again."""
    torch._dynamo.reset()
    model, plain = compiled(how)
    ids_nt, mask_nt = tiny.rows(4, 12)

    def train() -> Tensor:
        return model(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss

    before = train()
    wanted = read(plain, tiny.probe(8), [0, 2, -1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    train()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(2):
        got = read(model, tiny.probe(8), [0, 2, -1])
        for label in wanted:
            torch.testing.assert_close(got[label], wanted[label], rtol=0, atol=1e-6)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(train(), before)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert all(module.training for module in model.modules())
    assert hooks_of(model) == 0
    torch._dynamo.reset()


def test_bf16_model() -> None:
    model, probe = tiny.model("gpt_neox", dtype=torch.bfloat16), tiny.probe(8)
    (batch,) = probe.batches(8)
    reader = Reader(model)
    with leave_no_trace(reader.called):
        features, _ = reader.read(batch, "last")
    states = own_states(model, batch.input_ids_bt, batch.mask_bt)[-1]
    assert features["layer3"].dtype == torch.bfloat16
    assert torch.equal(features["layer3"].double(), torch.stack([row[-1] for row in states]))


def test_mean_position_is_not_rounded_by_autocast() -> None:
    """Under the trainer's bf16 autocast the states are what they are, but their mean is no part of the model."""
    model, probe = tiny.model("gpt2"), tiny.probe(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        every_md = read(model, probe, 1, "all")["layer1"]
        mean_nd = read(model, probe, 1, "mean")["layer1"]
    wanted = [part.mean(0) for part in every_md.split((probe.lengths_n - 1).tolist())]
    torch.testing.assert_close(mean_nd, torch.stack(wanted), rtol=0, atol=1e-6)


class Plain(nn.Module):
    """A model of no library, called with an image of the tokens."""

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
    by_module = read(model, probe, module="mix")
    last_n = probe.input_ids_nt[torch.arange(9), probe.lengths_n - 1]
    assert torch.equal(by_layer["embed"], model.embed(last_n).detach().double())
    assert torch.equal(by_layer["mix"], by_module["mix"])
    wanted = [model.mix(model.embed(probe.input_ids_nt[i, :n]))[0][-1] for i, n in enumerate(probe.lengths_n.tolist())]
    torch.testing.assert_close(by_layer["mix"], torch.stack(wanted).detach().double(), rtol=0, atol=1e-6)


def test_plain_module_through_forward() -> None:
    class Dictionary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["tokens"])

    model, probe = Dictionary(), tiny.probe(9)
    calls = []

    def forward(called: nn.Module, ids_bt: Tensor, mask_bt: Tensor) -> None:
        calls.append((called, mask_bt.sum(1).tolist()))
        called({"tokens": ids_bt})

    got = read(model, probe, layers="inner.mix", forward=forward, batch_size=5)
    assert torch.equal(got["inner.mix"], read(model.inner, probe, layers="mix", batch_size=5)["mix"])
    assert [called for called, _ in calls] == [model, model]
    assert [n for _, lengths in calls for n in lengths] == sorted(probe.lengths_n.tolist(), reverse=True)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy, self.reference = tiny.model("llama"), tiny.model("llama", seed=1)


def test_one_of_two_models_by_name() -> None:
    two, probe = Two(), tiny.probe(8)
    for name in ("policy", "reference"):
        got = read(two, probe, [1, -1], module=name)
        wanted = read(getattr(two, name), probe, [1, -1])
        assert [torch.equal(got[label], wanted[label]) for label in wanted] == [True, True]


def encoder_decoder() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def of_zero3() -> nn.Module:
    """As ZeRO-3 marks it, without the hooks that gather it."""
    model = tiny.model()
    next(model.parameters()).ds_id = 0
    return model


class FullyShardedDataParallel(nn.Sequential):
    """Named as FSDP1's wrapper, which needs a process group."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reader(tiny.model("llama"), "model.layer.1"), r"layers='model.layer.1' is no.*'model.layers.1'"),
        (lambda: Reader(Plain(), "mixx"), r"layers='mixx' is no submodule of Plain: did you mean 'mix'"),
        (lambda: Reader(Plain(), "zzzzzzzz"), r"layers='zzzzzzzz' is no submodule of Plain: it has embed, mix, head"),
        (lambda: Reader(Two(), module="polcy"), r"module='polcy' is no submodule of Two: did you mean 'policy'"),
        (lambda: Reader(Two()), r"Two holds 2 language models: choose one, module='policy' .*module='reference'"),
        (lambda: Reader(Plain()), r"no causal language model.*Plain: name.*module=<name>.*embed \(Embedding\)"),
        (lambda: Reader(nn.ReLU()), r"no causal language model.*Its children: none"),
        (lambda: Reader(encoder_decoder()), r"T5ForConditionalGeneration is an encoder-decoder: only causal"),
        (lambda: Reader(tiny.model(), 4), r"layers=4 is not in GPTNeoX.* 3 blocks: give 0 to 3, or -1 to -4"),
        (lambda: Reader(tiny.model(), -5), r"layers=-5 is not in"),
        (lambda: Reader(tiny.model(), []), r"layers=\[\] reads nothing: give a layer"),
        (lambda: Reader(tiny.model(), [3, -1]), r"layers=\[3, -1\] names a layer twice \(layer3, layer3\)"),
        (lambda: Reader(Plain(), 2, module="mix"), r"layers=2 counts the blocks of a Trans.*name the submodule"),
        (lambda: Reader(FullyShardedDataParallel(tiny.model())), r"shard it by fully_shard \(fsdp_version: 2\)"),
        (lambda: entry_of(of_zero3(), tiny.model()), r"the hook that begins a pass was not found: give the engine"),
        (lambda: entry_of(nn.Sequential(of_zero3()), tiny.model()), r"Sequential is part.*takes no input_ids: give"),
        (lambda: refuse_sharded(of_zero3()), r"sharded over processes .*measure it on saved checkpoints"),
        (lambda: read(tiny.model("llama"), tiny.probe(4), "lm_head"), r"layer 'lm_head' was not reached.*forward="),
        (lambda: read(Plain(), tiny.probe(4), "mix.nothing"), r"layers='mix.nothing' is no submodule"),
    ],
)  # fmt: skip
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_layer_that_gives_no_states_is_refused() -> None:
    class Pooled(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Identity()

        def forward(self, ids_bt: Tensor) -> Tensor:
            return self.pool(super().forward(ids_bt).mean(1))

    model = Pooled()
    with pytest.raises(ValueError, match=r"layer 'pool' gives \(4, 120\), not states of shape \(4, \d+, 'd'\)"):
        read(model, tiny.probe(4), "pool")
    assert hooks_of(model) == 0


# --- no trace ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed() -> nn.Module:
    """A model in training mode, some of whose parts are not, and some of whose weights are frozen."""
    model = tiny.model("gpt_neox", hidden_dropout=0.3, attention_dropout=0.3)
    model.gpt_neox.layers[1].eval()
    model.gpt_neox.layers[2].attention.eval()
    model.gpt_neox.embed_in.requires_grad_(False)
    return model


def trace(model: nn.Module) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        hooks_of(model),
        tiny.random_states(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
    )


@pytest.mark.parametrize("precision", ["training", "fp32", "bf16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["no autocast", "autocast"])
def test_measuring_leaves_no_trace(mixed: nn.Module, precision: str, autocast: bool) -> None:
    monitor = GeometryMonitor(
        tiny.probe(), layers=[0, 1, -1], alpha_window=tiny.WINDOW, precision=precision, on_error="raise"
    )
    weights = copy.deepcopy(mixed.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = trace(mixed)
        one = monitor.measure(mixed, 0)
        assert trace(mixed) == before
        other = monitor.measure(mixed, 1)
    assert [record.metrics for record in one] == [record.metrics for record in other]  # no dropout while measuring
    assert all(torch.equal(value, weights[name]) for name, value in mixed.state_dict().items())


class Drawing(nn.Module):
    """Its forward pass moves every global random state, in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(tiny.VOCABULARY, 6)

    def forward(self, ids_bt: Tensor) -> Tensor:
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        return self.table(ids_bt) + 0 * noise


def test_random_states_that_the_model_moves_are_put_back() -> None:
    model = Drawing()
    before = tiny.random_states()
    model(torch.zeros(1, 1, dtype=torch.int64))
    assert sum(a != b for a, b in zip(before, tiny.random_states(), strict=True)) >= 3
    before = tiny.random_states()
    GeometryMonitor(tiny.probe(), layers="table", alpha_window=(1, 3), on_error="raise").measure(model, 0)
    assert tiny.random_states() == before


def test_dropout_is_off_while_measuring(mixed: nn.Module) -> None:
    probe = tiny.probe(8)
    in_training = read(mixed, probe, [1, -1])
    assert mixed.training
    in_evaluation = read(mixed.eval(), probe, [1, -1])
    for label, feature_nd in in_training.items():
        assert torch.equal(feature_nd, in_evaluation[label])


def test_frequencies_of_dynamic_rope_are_put_back() -> None:
    """A row longer than any before makes it recompute them, and without care keep them."""
    model = tiny.model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    long = ProbeSet.from_token_ids(torch.randint(3, tiny.VOCABULARY, (4, 100)))
    reader = Reader(model)
    with leave_no_trace(reader.called):
        reader.read(long.batches(4)[0], "last")
        assert not torch.equal(model.model.rotary_emb.inv_freq, before["model.rotary_emb.inv_freq"])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.model.rotary_emb.max_seq_len_cached == 64


def test_no_trace_after_an_exception(mixed: nn.Module) -> None:
    def fail(module: nn.Module, args: object) -> None:
        torch.rand(3)
        raise RuntimeError("injected")

    monitor = GeometryMonitor(tiny.probe(), layers=[0, 1, -1], alpha_window=tiny.WINDOW, on_error="raise")
    monitor.start(mixed)
    before = trace(mixed)
    handle = mixed.gpt_neox.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="injected"):
        monitor.measure(mixed, 0)
    handle.remove()
    assert trace(mixed) == before


def test_gradients_in_waiting_stay(mixed: nn.Module) -> None:
    """Between two accumulated batches a gradient is there, and is to be added to."""
    ids_nt, mask_nt = tiny.rows(4)
    mixed(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss.backward()
    before = [None if p.grad is None else p.grad.clone() for p in mixed.parameters()]
    GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW).measure(mixed, 0)
    for gradient, parameter in zip(before, mixed.parameters(), strict=True):
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("precision", ["training", "bf16", "fp32"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_autocast_keeps_no_gradientless_weights(precision: str, when: str) -> None:
    """Autocast caches the low-precision copy of a weight, and one made without gradients would end training.

    torch 2.13 keeps no such copy itself; earlier ones that the package supports do.
    """
    ids_nt, mask_nt = tiny.rows(4)
    gradients = []
    for measured in (False, True):
        model = tiny.model("llama")
        monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, precision=precision, on_error="raise")
        monitor.start(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if when == "between":
                model(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss.backward()
            if measured:
                monitor.measure(model, 0)
            model(input_ids=ids_nt, attention_mask=mask_nt, labels=ids_nt).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for without, with_measuring in zip(*gradients, strict=True):
        assert with_measuring is not None
        assert torch.equal(without, with_measuring)


def test_neither_head_nor_cache_is_computed() -> None:
    model, seen = tiny.model("llama"), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append("head"))
    model.model.register_forward_hook(lambda module, args, output: seen.append(output.past_key_values))
    read(model, tiny.probe(8))
    assert seen == [None]


@pytest.mark.parametrize(("layers", "run"), [(0, 1), (1, 1), ([0, 2], 2), (3, 3), (-1, 3), ([1, "norm"], 3)])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_blocks_behind_the_deepest_layer_do_not_run(kind: str, layers: object, run: int) -> None:
    """Layer 0 is what enters the first block, which begins; a module that is named may run again."""
    model = tiny.model(kind)
    if layers == [1, "norm"]:
        layers = [1, {"llama": "model.norm", "gpt_neox": "gpt_neox.final_layer_norm", "gpt2": "transformer.ln_f"}[kind]]
    wanted = read(model, tiny.probe(8), [0, 1, 2, 3])
    begun: list[int] = []
    for index, block in enumerate(blocks_of(model)):
        block.register_forward_pre_hook(lambda module, args, index=index: begun.append(index))
    got = read(model, tiny.probe(8), layers)
    assert begun == list(range(run))
    for label in wanted.keys() & got.keys():
        assert torch.equal(got[label], wanted[label])


def test_what_accelerate_brings_in_goes_out_again() -> None:
    """A model whose weights lie elsewhere between passes is run to its end, so that each hook sees it."""
    model, probe = tiny.model("llama"), tiny.probe(8)
    wanted = read(model, probe, 1)["layer1"]
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in offloaded.model.layers.parameters())
    got = read(offloaded, probe, 1)["layer1"]
    assert torch.equal(got, wanted)
    assert all(p.is_meta for p in offloaded.model.layers.parameters())


@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_is_given_where_there_is_padding(padded: bool) -> None:
    model, seen = tiny.model("llama"), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    ids_nt, mask_nt = tiny.rows(8)
    probe = ProbeSet.from_token_ids(ids_nt, mask_nt if padded else None)
    read(model, probe)
    assert [mask is not None for mask in seen] == [padded]


def test_features_hold_no_graph() -> None:
    reader = Reader(tiny.model())
    features, _ = reader.read(tiny.probe(4).batches(4)[0], "last")
    assert not features["layer3"].requires_grad


def test_gradient_checkpointing_stays_on() -> None:
    model, probe = tiny.model("llama"), tiny.probe(8)
    wanted = read(model, probe, [1, -1])
    model.gradient_checkpointing_enable()
    got = read(model, probe, [1, -1])
    assert [torch.equal(got[label], wanted[label]) for label in wanted] == [True, True]
    assert model.is_gradient_checkpointing
    assert all(module.training for module in model.modules())


def test_unwrap_goes_through_every_wrapper() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(nn.DataParallel(torch.compile(nn.DataParallel(model)))) is model
