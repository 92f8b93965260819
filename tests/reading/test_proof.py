"""Which state is read is proven by a trial pass: against what the model itself gives, at the place where it is used."""

from __future__ import annotations

import warnings

import pytest
import small_causal
import sweep
import tiny
import torch
from states import hooks_of, proven, read
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.reading.reader import Reader

#: A class of each way in which what is read is not where it is expected, or is nowhere.
KINDS = {
    "LlamaForCausalLM": "hidden_states[-1]",
    "Llama4ForCausalLM": "hidden_states[-1]",  # get_decoder() is the model itself
    "MllamaForCausalLM": "hidden_states[-1]",  # it gives fewer hidden states than it has blocks
    "ModernBertDecoderForCausalLM": "enters the head",  # get_decoder() is the head, and a transform stands before it
    "BertLMHeadModel": "enters the head",
    "RemBertForCausalLM": "enters the head",  # whose states have another d
    "InklingForCausalLM": "enters the head",  # scaled by no module
    "MambaForCausalLM": "hidden_states[-1]",  # hidden_states[0] leaves the first block
    "RwkvForCausalLM": "hidden_states[-1]",
    "XLMWithLMHeadModel": "hidden_states[-1]",  # several lists of modules
    "Gemma2ForCausalLM": "hidden_states[-1]",
    "GraniteForCausalLM": "hidden_states[-1]",
    "OPTForCausalLM": "hidden_states[-1]",
}


@pytest.mark.parametrize("name", KINDS)
def test_layers_are_the_classes_own(name: str) -> None:
    """Each number is `hidden_states` of that number, -1 is what enters the head, of padded rows. See `make sweep`."""
    row = sweep.sweep(name)
    assert (row.built, row.wrong, row.refused, row.default) == ("yes", [], {}, KINDS[name])
    assert len(row.equal) > 3


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("XLNetLMHeadModel", 1, r"hidden_states\[1\] of XLNetLMHeadModel leaves none.*or layers=-1, what enters its h"),
        ("HrmTextForCausalLM", 3, r"hidden_states\[3\] of HrmText.* leaves none of its modules"),  # blocks run again
        ("ProphetNetForCausalLM", -1, r"enters the head of ProphetNet.*, 'lm_head', which is no.*layers=4 reads its"),
        ("CpmAntForCausalLM", -1, r"CpmAntForCausalLM gives other states of a row that is padded: give rows of one"),
        ("PaliGemmaForConditionalGeneration", 1, r"PaliGemma.* gives other states of a row that is padded"),
        ("MllamaForCausalLM", 4, r"layers=4 is not in Mllama.*4 blocks and gives 4 hidden_states: give -4 to 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_proven_is_refused(name: str, layers: int, message: str) -> None:
    model = small_causal.build(name)
    with pytest.raises(ValueError, match=message):
        read(model, sweep.probe(model), layers)


def test_rows_of_one_length_need_no_padding() -> None:
    """A model that takes no padding on the right is read where there is none."""
    model = small_causal.build("CpmAntForCausalLM")
    probe = ProbeSet.from_token_ids(torch.randint(10, 100, (48, 12), generator=torch.Generator().manual_seed(0)))
    (record,) = GeometryMonitor(probe, alpha_window=(2, 8), on_error="raise").measure(model, 0)
    assert record.layer == "layer4"


def test_a_default_layer_that_is_not_the_last_hidden_state_is_told_and_labelled() -> None:
    model, probe = small_causal.build("ModernBertDecoderForCausalLM"), tiny.probe(48)
    monitor = GeometryMonitor(probe, layers=[4, -1], alpha_window=(2, 8), on_error="raise")
    with pytest.warns(UserWarning, match=r"enters the head of ModernBert.*'decoder'.*not hidden_states\[-1\]"):
        records = monitor.measure(model, 0)
    assert [(record.layer, record.module) for record in records] == [("layer4", "model"), ("head", "lm_head")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert monitor.measure(model, 1)[1].metrics == records[1].metrics


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "ModernBertDecoderForCausalLM", "MambaForCausalLM"])
def test_a_trial_pass_leaves_no_trace(name: str) -> None:
    """Asked for hidden_states, Transformers hooks every block; a second time, each state would stand there twice."""
    model = small_causal.build(name).train()
    before = {key: dict(vars(module)) for key, module in model.named_modules()}, tiny.random_states()
    proven(model, tiny.probe(4), [1, -1])
    assert ({key: dict(vars(module)) for key, module in model.named_modules()}, tiny.random_states()) == before
    assert hooks_of(model) == 0
    states = model.eval()(torch.arange(9)[None], output_hidden_states=True).hidden_states
    assert len(states) == 5


def test_layers_of_a_decoder_whose_config_knows_its_encoder() -> None:
    """BART: `num_hidden_layers` is the encoder's."""
    shape = dict(encoder_layers=3, decoder_layers=2, encoder_ffn_dim=8, decoder_ffn_dim=8)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64)
    model = BartForCausalLM(BartConfig(vocab_size=tiny.VOCABULARY, d_model=16, **shape, **heads)).eval()
    assert list(read(model, tiny.probe(4))) == list(read(model, tiny.probe(4), 2)) == ["layer2"]
    with pytest.raises(ValueError, match=r"layers=3 is not in BartForCausalLM, which has 2 blocks"):
        read(model, tiny.probe(4), 3)


def test_failure_of_the_model_is_no_refusal() -> None:
    """What is no fault of the arguments is raised as it is, so that a run can go on without the measurement."""
    model = tiny.model("llama")

    def fail(module: nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("injected")

    for module in (model.model.layers[1], model.lm_head):
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            proven(model, tiny.probe(4))
        handle.remove()


def test_precision_is_that_asked_for_where_accelerate_wraps_the_forward() -> None:
    """A model called whole must not run under the autocast of accelerate's own wrapper."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = small_causal.build("InklingForCausalLM")
    wanted = read(model, tiny.probe(8))
    AcceleratorState._reset_state(reset_partial_state=True)  # that of another test in this process
    try:
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
        assert vars(prepared)["_original_forward"]
        got = read(prepared, tiny.probe(8))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert list(got) == ["head"]
    assert torch.equal(got["head"], wanted["head"])


# --- models of no library -----------------------------------------------------------------------------------------


class NanoGPT(nn.Module):
    """As nanoGPT has it: at inference, logits of the last position alone."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.ModuleDict({"wte": nn.Embedding(tiny.VOCABULARY, 16), "wpe": nn.Embedding(64, 16)})
        self.transformer = norm
        norm["h"], norm["ln_f"] = nn.ModuleList(nn.Linear(16, 16) for _ in range(2)), nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, tiny.VOCABULARY, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, None]:
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.shape[1]))
        for block in self.transformer.h:
            x = x + block(x).tanh()
        return self.lm_head(self.transformer.ln_f(x)[:, [-1], :]), None


def test_the_layer_before_the_head_is_proposed() -> None:
    with pytest.raises(ValueError, match=r"layers='transformer.ln_f' reads what enters its head, 'lm_head'"):
        read(NanoGPT(), tiny.probe(4))


def test_default_layer_with_forward_is_what_enters_the_head() -> None:
    """And not the logits, whose d is the vocabulary."""
    model, probe = NanoGPT(), tiny.probe(8)
    got = read(model, probe, forward=lambda called, ids, mask: called(ids))
    assert list(got) == ["transformer.ln_f"]
    assert torch.equal(got["transformer.ln_f"], read(model, probe, "transformer.ln_f")["transformer.ln_f"])
    monitor = GeometryMonitor(probe, alpha_window=(2, 6), forward=lambda called, ids, mask: called(ids))
    assert monitor.measure(model, 0)[0].d == 16


@pytest.mark.parametrize("layers", [-1, 1])
def test_forward_of_a_language_model(layers: int) -> None:
    model, probe = tiny.model("llama"), tiny.probe(8)
    call = lambda called, ids, mask: called(input_ids=ids, attention_mask=mask)
    assert {k: v.tolist() for k, v in read(model, probe, layers, forward=call).items()} == {
        k: v.tolist() for k, v in read(model, probe, layers).items()
    }


def test_default_layer_of_a_model_without_a_head_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(tiny.VOCABULARY, 6), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"enters the head, and Sequential shows none: .* layers='0', layers='1'"):
        read(model, tiny.probe(4), forward=lambda called, ids, mask: called(ids))


# --- refusals that say what to do ---------------------------------------------------------------------------------


def test_positions_without_a_limit() -> None:
    """XLNet's config says -1."""
    model = small_causal.build("XLNetLMHeadModel")
    (record,) = GeometryMonitor(tiny.probe(48), alpha_window=(2, 8), on_error="raise").measure(model, 0)
    assert (record.layer, record.d) == ("layer4", 32)


def clip() -> nn.Module:
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text, vision = dict(vocab_size=tiny.VOCABULARY, **shape), dict(image_size=32, patch_size=16, **shape)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def test_a_model_of_text_and_images_names_the_part_to_read() -> None:
    monitor = GeometryMonitor(tiny.probe(48), alpha_window=(2, 8))
    with pytest.raises(ValueError, match=r"CLIPModel cannot be called with tokens alone.*module='text_model' \(CLIP"):
        monitor.start(clip())
    (record,) = GeometryMonitor(tiny.probe(48), alpha_window=(2, 8), module="text_model").measure(clip(), 0)
    assert record.d == 16


def test_an_encoder_is_read_and_an_encoder_decoder_is_told_how() -> None:
    shape = dict(vocab_size=tiny.VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = T5EncoderModel(T5Config(**shape)).eval()
    assert list(read(model, tiny.probe(4))) == ["layer1"]
    whole = T5ForConditionalGeneration(T5Config(**shape)).eval()
    with pytest.raises(ValueError, match=r"is read by layers='encoder', forward=lambda") as caught:
        Reader(whole)
    line = eval(f"dict({str(caught.value).partition('is read by ')[2]})")  # as a user copies it
    assert read(whole, tiny.probe(4), **line)["encoder"].shape == (4, 8)


def test_a_lightning_module_that_is_no_language_model() -> None:
    lightning = pytest.importorskip("lightning")
    module = lightning.LightningModule()
    module.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    module.forward = lambda x: module.net(x)
    message = r"no causal language model in LightningModule: name.* of net \(Sequential\); give forward=lambda"
    with pytest.raises(ValueError, match=message):
        GeometryMonitor(tiny.probe(48), alpha_window=(2, 8)).start(module)


@pytest.mark.parametrize("d", [1, 2])
def test_a_model_too_narrow_for_any_window_has_all_other_metrics(d: int) -> None:
    model = nn.Sequential(nn.Embedding(tiny.VOCABULARY, d))
    (record,) = GeometryMonitor(tiny.probe(48), layers="0", on_error="raise", alpha_window=(11, 40)).measure(model, 0)
    assert record.metrics["rankme"] is not None
    assert record.metrics["alpha_req"] is None
    assert record.reasons["alpha_req"] == f"ranks 11 to 40 reach past the rank {d} of the data"
