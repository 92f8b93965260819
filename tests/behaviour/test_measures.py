"""What every measure keeps: it is logged with its fingerprint, leaves no trace, and refuses what does not fit."""

from __future__ import annotations

import pytest
import tiny
import torch
from behaviour_rows import choices, completions, state_of

from geomcallbacks import ProbeSet, read_records
from geomcallbacks.behaviour import (
    BehaviourMonitor,
    ChoiceAccuracy,
    Choices,
    CompletionLoss,
    Completions,
    FrequencyLoss,
    Memorisation,
    NgramScores,
    PreferenceScore,
    RolloutScore,
    SpectralIntervention,
)

COUNTS = torch.arange(tiny.VOCABULARY)
SCORES = NgramScores([[0.05 * (row + 1)] for row in range(11)], [[1]] * 11, "made by hand")


def rollouts(**changes):
    settings = {"answer": str.strip, "samples": 2, "max_new_tokens": 4, "ks": (1, 2)} | changes
    return RolloutScore(["w1", "w2 w3"], lambda text, p: float(len(text)), tiny.tokenizer(), **settings)


#: By name: the measure on given rows, a probe and questions, and the keys that it logs.
MEASURES = {
    "loss": (lambda rows, probe, asked, **x: CompletionLoss(rows, **x), ["loss"]),
    "preference": (
        lambda rows, probe, asked, **x: PreferenceScore(rows, rows, **x),
        ["accuracy", "margin", "accuracy_per_token", "margin_per_token"],
    ),
    "memorisation": (lambda rows, probe, asked, **x: Memorisation(rows, SCORES, **x), ["rho", "n", "low", "high"]),
    "primacy": (lambda rows, probe, asked, **x: FrequencyLoss(probe, COUNTS, bands=2, **x), ["band_1", "band_2"]),
    "accuracy": (lambda rows, probe, asked, **x: ChoiceAccuracy(asked, **x), ["accuracy", "low", "high"]),
    "intervention": (
        lambda rows, probe, asked, **x: SpectralIntervention(probe, asked, ks=(2,), kinds=["remove_top"], **x),
        [name + end for name in ("full", "remove_top_2") for end in ("", "_low", "_high")],
    ),
    "rollouts": (
        lambda rows, probe, asked, **x: rollouts(**x),
        ["reward", "pass@1", "pass@2", "distinct_answers", "answer_entropy", "distinct_1", "distinct_2", "no_answer",
         "length"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_logged_with_its_fingerprint_and_leaves_no_trace(name, tmp_path):
    """A model with dropout, one block of it in evaluation mode."""
    make, keys = MEASURES[name]
    measure = make(completions(), tiny.probe(), choices())
    model = tiny.model(attention_dropout=0.5, hidden_dropout=0.5)
    model.gpt_neox.layers[1].eval()
    before = state_of(model)
    monitor = BehaviourMonitor({"it": measure}, path=tmp_path / "behaviour.jsonl", on_error="raise")
    monitor.start(model)
    values = monitor.measure(model, 0)
    monitor.close()
    assert state_of(model) == before
    assert values == {f"it/{key}": value for key, value in measure(model).items()}  # no dropout: the same again
    assert values.keys() == {f"it/{key}" for key in keys}
    (record,) = read_records(tmp_path / "behaviour.jsonl")
    assert {key: record[key] for key in values} == values
    assert measure.fingerprint in (tmp_path / "behaviour.jsonl").read_text()


@pytest.mark.parametrize("name", MEASURES.keys() - {"rollouts"})
@pytest.mark.parametrize(("tokens", "message"), [([5, 120], "token id 120"), ([5] * 70, r"70 tokens.* 64 positions")])
def test_rows_that_do_not_fit_the_model_are_refused(name, tokens, message):
    """Each measure's rows, then the intervention's probe alone; at a call too, or an index error would follow."""
    rows = Completions([tokens[:1]] * 11, [tokens[1:]] * 11)
    probe = ProbeSet.from_token_ids([[5, 6], tokens] * 20)
    asked = Choices([tokens[:1]], [[tokens[1:], [6]]], [0])
    model = tiny.model("gpt2")
    for measure in (MEASURES[name][0](rows, probe, asked), MEASURES["intervention"][0](rows, probe, choices())):
        with pytest.raises(ValueError, match=message):
            measure.check(model)
        with pytest.raises(ValueError, match=message):
            measure(model)


def test_prompts_that_leave_no_room_to_sample_are_refused():
    with pytest.raises(ValueError, match=r"66 tokens.* 64 positions"):
        rollouts(max_new_tokens=63).check(tiny.model("gpt2"))


@pytest.mark.parametrize("name", MEASURES)
def test_wrong_arguments_are_refused(name):
    make, _ = MEASURES[name]
    for batch_size in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
            make(completions(), tiny.probe(), choices(), batch_size=batch_size)
    if name != "rollouts":
        with pytest.raises(TypeError, match="is a list: give a"):
            make([[1]], [[1]], [[1]])
