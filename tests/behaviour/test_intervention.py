"""Spectral intervention against NumPy: eigenvectors, projection, head and scores worked out apart."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from behaviour_rows import choices
from transformers import (
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
)

from geomcallbacks import GeometryMonitor
from geomcallbacks.behaviour import ChoiceAccuracy, SpectralIntervention
from geomcallbacks.behaviour.measures.intervention import KINDS, Directions, directions_of, head_logits, project
from geomcallbacks.reading.locate import backbone_of

D = 16
KS = (2, 9, D)  # with all directions kept the model is as it is, with all removed only the mean speaks


def last_states(model, rows):
    """The final states of every position of each row, by Transformers' own `hidden_states`, float64."""
    with torch.no_grad():
        outputs = [model.eval()(input_ids=torch.tensor([list(row)]), output_hidden_states=True) for row in rows]
    return [output.hidden_states[-1][0].double().numpy() for output in outputs]


def probe_states(model, probe):
    rows = [ids[:length].tolist() for ids, length in zip(probe.input_ids_nt, probe.lengths_n, strict=True)]
    return np.stack([states[-1] for states in last_states(model, rows)])


def expected_accuracy(model, feature_nd, option_states, made, kind, k, drawn):
    """Accuracy under one projection, in NumPy."""
    m = feature_nd.mean(0)
    vectors = np.linalg.svd(feature_nd - m)[2]  # rows, descending: another route than an eigensolve
    action, which = kind.split("_")
    chosen = vectors[{"top": np.arange(D), "bottom": np.arange(D)[::-1], "random": drawn}[which][:k]]
    projection = chosen.T @ chosen if action == "keep" else np.eye(D) - chosen.T @ chosen
    head = model.get_output_embeddings().weight.detach().double().numpy()
    right = 0
    for states, options, answer in zip(option_states, made.option_ids, made.answers, strict=True):
        scores = []
        for state_td, option in zip(states, options, strict=True):
            logits = (m + (state_td - m) @ projection) @ head.T
            log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            scores.append(log_p[np.arange(len(option)), option].sum())
        right += int(np.argmax(scores)) == answer
    return right / len(made)


@pytest.mark.parametrize("kind", ["gpt_neox", "olmo2", "gpt2"])
def test_every_projection_is_numpys(kind):
    model, probe, made = tiny.model(kind), tiny.probe(), choices()
    found = SpectralIntervention(probe, made, ks=KS, seed=5, batch_size=7)(model)
    drawn = torch.randperm(D, generator=torch.Generator().manual_seed(5)).numpy()
    feature_nd = probe_states(model, probe)
    option_states = [
        [states[len(prompt) - 1 : -1] for states in last_states(model, [prompt + option for option in options])]
        for prompt, options in zip(made.prompt_ids, made.option_ids, strict=True)
    ]
    for name in KINDS:
        for k in KS:
            expected = expected_accuracy(model, feature_nd, option_states, made, name, k, drawn)
            assert found[f"{name}_{k}"] == pytest.approx(expected), (name, k)
    assert {f"full{end}": found[f"full{end}"] for end in ("", "_low", "_high")} == {
        f"full{end}": value
        for end, value in zip(("", "_low", "_high"), ChoiceAccuracy(made)(model).values(), strict=True)
    }
    assert len(found) == 3 * (1 + len(KS) * len(KINDS))


@pytest.mark.parametrize("positions", ["last", 3, "all"])
def test_covariance_is_that_of_the_geometry(positions):
    model, probe = tiny.model("olmo2").eval(), tiny.probe()
    (record,) = GeometryMonitor(probe, alpha_window=tiny.WINDOW, positions=positions).measure(model, 0)
    directions = directions_of(model, probe, positions)
    np.testing.assert_allclose(directions.eigenvalues_d, record.eigenvalues, rtol=1e-10)
    assert float(directions.mean_d.norm()) == pytest.approx(record.metrics["mean_norm"], rel=1e-12)
    if positions == "last":
        covariance = np.cov(probe_states(model, probe), rowvar=False)
        vectors, values = directions.vectors_dd.numpy(), directions.eigenvalues_d.numpy()
        np.testing.assert_allclose(vectors * values @ vectors.T, covariance, atol=1e-6 * values[0])
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(D), atol=1e-12)


def test_projection_worked_by_hand():
    """Mean (1, 1, 1); the leading direction is the second axis, then the third, then the first."""
    vectors = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    directions = Directions(torch.ones(3, dtype=torch.float64), torch.tensor([3.0, 2, 1]), vectors)
    hidden = torch.tensor([[4.0, 5, 6]])
    assert project(hidden, directions, torch.tensor([0])).tolist() == [[1, 5, 1]]
    assert project(hidden, directions, torch.tensor([], dtype=torch.int64)).tolist() == [[1, 1, 1]]
    assert project(hidden.bfloat16(), directions, torch.tensor([0])).dtype == torch.bfloat16


HEADS = {
    **{name: lambda name=name: tiny.model(name) for name in tiny.CONFIGS},
    "softcapped": lambda: tiny.model("gemma3", final_logit_softcapping=0.05),
    "scaled": lambda: GraniteForCausalLM(
        GraniteConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, intermediate_size=32, logits_scaling=7.0, pad_token_id=0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HEADS))
def test_head_gives_the_models_own_logits(name):
    model = HEADS[name]().eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        own = model(input_ids=ids).logits
        states = backbone_of(model)(input_ids=ids).last_hidden_state
        found = head_logits(model, states.flatten(0, 1))
    torch.testing.assert_close(found, own.flatten(0, 1), rtol=1e-5, atol=1e-6)


class Odd(GPT2LMHeadModel):
    """Adds to its logits what the backbone's output does not hold."""

    def forward(self, input_ids=None, **settings):
        output = super().forward(input_ids=input_ids, **settings)
        output.logits = output.logits + input_ids.sum()
        return output


def test_a_head_that_reads_something_else_is_refused():
    model = Odd(tiny.CONFIGS["gpt2"]())
    with pytest.raises(ValueError, match=r"head of Odd.*own logits"):
        SpectralIntervention(tiny.probe(), choices(), ks=(2,))(model)


def test_directions_are_of_the_backbone_where_the_model_changes_its_output_before_the_head():
    """What is exchanged is the backbone's output, so that the directions must be of that too."""
    config = ModernBertDecoderConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model, probe = ModernBertDecoderForCausalLM(config).eval(), tiny.probe()
    with torch.no_grad():
        states = [
            model.model(input_ids=ids[None, :n]).last_hidden_state[0, -1]
            for ids, n in zip(probe.input_ids_nt, probe.lengths_n.tolist(), strict=True)
        ]
        mean_d = directions_of(model, probe, "last").mean_d
    torch.testing.assert_close(mean_d, torch.stack(states).double().mean(0), rtol=0, atol=1e-6)


def test_hooks_go_when_the_head_fails():
    model, calls = tiny.model(), []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the head fails")

    handle = model.get_output_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the head fails"):
        SpectralIntervention(tiny.probe(), choices(), ks=(2,))(model)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())


def test_non_finite_states_are_refused():
    model = tiny.model()
    model.gpt_neox.final_layer_norm.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        SpectralIntervention(tiny.probe(), choices(), ks=(2,))(model)


def make(probe=None, **changes):
    return SpectralIntervention(probe or tiny.probe(), choices(), **{"ks": (2,), **changes})


def test_fingerprint_sees_every_setting():
    changes = ({}, {"ks": (3,)}, {"kinds": ["keep_top"]}, {"positions": 3}, {"seed": 1}, {"probe": tiny.probe(seed=2)})
    assert len({make(**change).fingerprint for change in changes}) == 6
    assert make(batch_size=3).fingerprint == make().fingerprint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(ks=()), r"ks=\(\)"),
        (lambda: make(ks=(0,)), r"ks=\(0,\)"),
        (lambda: make(ks=(2, 2)), "each once"),
        (lambda: make(ks=(64,)), r"ks=\(64,\).*n = 64 features have 63"),
        (lambda: make(kinds="keep_top"), r"kinds='keep_top'.*in a list"),
        (lambda: make(kinds=["keep_middle"]), r"keep_middle.*keep_top"),
        (lambda: make(positions="first"), "positions='first'"),
        (lambda: make(ks=(17,)).check(tiny.model()), r"ks=\(17,\).*d = 16"),
        (lambda: make(probe=tiny.probe(16)).check(tiny.model()), "n = 16 features do not determine"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_few_features_serve_for_the_top_alone():
    make(probe=tiny.probe(16), kinds=["keep_top", "remove_top"]).check(tiny.model())
