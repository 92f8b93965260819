"""Completions are draws from the model's own distribution, and drawing them leaves no trace."""

from __future__ import annotations

import copy
import math
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from behaviour_rows import state_of
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import GenerationConfig

from geomcallbacks import ProbeSet
from geomcallbacks.behaviour import sample
from geomcallbacks.behaviour.sampling.draw import _Draw

PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7"]


def draw(model, prompts=PROMPTS, tokenizer=None, **changes):
    settings = {"samples": 4, "max_new_tokens": 6, "batch_size": 5} | changes
    return sample(model, tokenizer or tiny.tokenizer(), prompts, **settings)


def sharp(seed=0, kind="llama", **changes):
    """A model that does not draw all tokens alike."""
    model = tiny.model(kind, seed, **changes)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model


def distributions(model, ids):
    """Behind every token of a row, by a plain forward pass."""
    with torch.no_grad():
        return torch.softmax(model.eval()(input_ids=torch.tensor([ids])).logits[0].double(), -1)


def test_shapes_and_rows():
    made = draw(sharp())
    assert made.prompts == PROMPTS
    assert [len(group) for group in made.completions] == [4, 4, 4]
    tokenizer = tiny.tokenizer()
    for row, ids in enumerate(made.token_ids):
        p, s = divmod(row, 4)
        prompt = tokenizer(PROMPTS[p])["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert len(ids) == len(prompt) + made.completion_tokens[p][s] <= len(prompt) + 6
        assert 2 not in ids  # EOS
        assert made.completions[p][s] == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert len(ProbeSet.from_token_ids(made.token_ids)) == 12


def test_first_tokens_follow_the_models_distribution():
    """4,000 draws a prompt, against the probabilities of a forward pass: χ² below its 99.9 % quantile, and the test
    notices another temperature.
    """
    model, n = sharp(), 4000
    for temperature in (1.0, 1.2):
        made = draw(model, samples=n, max_new_tokens=1, batch_size=1000, temperature=temperature)
        for p, prompt in enumerate(PROMPTS):
            expected_v = distributions(model, tiny.tokenizer()(prompt)["input_ids"])[-1].numpy() * n
            drawn = zip(made.token_ids[p * n : (p + 1) * n], made.completion_tokens[p], strict=True)
            seen_v = np.bincount([ids[-1] if count else 2 for ids, count in drawn], minlength=tiny.VOCABULARY)  # 2: EOS
            rare_v = expected_v < 5
            seen, expected = (np.append(of_v[~rare_v], of_v[rare_v].sum()) for of_v in (seen_v, expected_v))
            assert (chisquare(seen, expected).pvalue > 0.001) == (temperature == 1.0)


def test_draws_invert_the_cumulative_distribution(monkeypatch):
    """A token of no probability is never drawn, not even by the smallest number."""
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, math.log(3.0), -math.inf]]).expand(20_000, 5)
    token = _Draw(1.0, 0)(None, scores).argmax(-1)
    assert set(token.tolist()) == {1, 3}
    assert float((token == 3).double().mean()) == pytest.approx(0.75, abs=0.01)
    monkeypatch.setattr(torch, "rand", lambda shape, **settings: torch.zeros(shape, dtype=torch.float64))
    assert _Draw(1.0, 0)(None, scores[:1]).argmax() == 1


def test_low_temperature_takes_the_likeliest_of_each_prefix():
    """Rows of differing length in one batch, of a model that attends to all it sees: padding must not be seen, and
    positions count from the first real token.
    """
    model = sharp()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name or "embed" in name:
                weight.mul_(12)
    made = draw(model, temperature=1e-4, samples=2, batch_size=6)
    for p, prompt in enumerate(PROMPTS):
        ids = tiny.tokenizer()(prompt)["input_ids"]
        assert made.completion_tokens[p][0] >= 3
        for token in made.token_ids[2 * p][len(ids) :]:
            assert token == int(distributions(model, ids)[-1].argmax())
            ids.append(token)
        assert made.completions[p][0] == made.completions[p][1]


def test_completions_are_cut_at_eos():
    """Another token is made the EOS: the same draws, cut where it first stands."""
    model, tokenizer, prompt = sharp(), tiny.tokenizer(), 5
    tokenizer.eos_token = None
    whole = draw(model, PROMPTS[:1], tokenizer, samples=40, batch_size=40)
    common = Counter(token for ids in whole.token_ids for token in ids[prompt:]).most_common(1)[0][0]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(common)
    made = draw(model, PROMPTS[:1], tokenizer, samples=40, batch_size=40)
    cut = [ids[: ids.index(common, prompt)] if common in ids[prompt:] else ids for ids in whole.token_ids]
    assert made.token_ids == cut != whole.token_ids
    assert made.completion_tokens == [[len(ids) - prompt for ids in cut]]
    assert not any(tokenizer.eos_token in text.split() for text in made.completions[0])


def test_same_arguments_same_completions_whatever_was_drawn_before():
    model = sharp(attention_dropout=0.5)
    first = draw(model)
    torch.rand(100)
    assert draw(model) == first
    assert draw(model, seed=1) != first
    assert draw(sharp(seed=1)) != first


def test_of_the_models_generation_settings_nothing_counts():
    model = sharp()
    first = draw(model)
    model.generation_config = GenerationConfig(
        top_k=1, repetition_penalty=3.0, num_beams=3, suppress_tokens=[4, 5, 6], max_length=3, eos_token_id=[2, 9, 10]
    )
    assert draw(model) == first


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_left_behind(checkpointing):
    model = sharp(attention_dropout=0.5)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.config.use_cache = False
    model.model.layers[1].eval()
    tokenizer = tiny.tokenizer()
    tokenizer(["w1 w2", "w3"], padding="max_length", truncation=True, max_length=17)
    before = state_of(model), tokenizer.backend_tokenizer.to_str(), copy.copy(vars(tokenizer))
    draw(model, tokenizer=tokenizer)
    assert (state_of(model), tokenizer.backend_tokenizer.to_str(), vars(tokenizer)) == before


def test_a_failure_leaves_nothing_behind_either():
    model = sharp()
    model.lm_head.weight.data[3] = math.nan
    before = state_of(model)
    with pytest.raises(RuntimeError, match="no distribution"):
        draw(model)
    assert state_of(model) == before


def test_of_an_adapted_model_the_adapter_counts_and_stays():
    base = sharp()
    plain = draw(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    before = state_of(model.base_model.model)
    assert draw(model) != plain
    assert state_of(model.base_model.model) == before
    with model.disable_adapter():
        assert draw(model) == plain


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
def test_every_architecture_and_bf16(kind):
    assert sum(map(sum, draw(tiny.model(kind).to(torch.bfloat16)).completion_tokens)) > 12
    with torch.autocast("cpu", torch.bfloat16):
        assert sum(map(sum, draw(tiny.model(kind)).completion_tokens)) > 12


def test_a_tokenizer_without_pad_and_eos():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    made = draw(sharp(), tokenizer=tokenizer)
    assert [count for counts in made.completion_tokens for count in counts] == [6] * 12


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples=0"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0"),
        ({"temperature": 0.0}, ValueError, "temperature=0"),
        ({"prompts": []}, ValueError, "prompts is empty"),
        ({"prompts": [3]}, TypeError, r"prompts\[0\] is a int"),
        ({"max_new_tokens": 64, "model": tiny.model("gpt2")}, ValueError, "64 positions"),
    ],
)
def test_bad_input_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        draw(**({"model": sharp()} | changes))
