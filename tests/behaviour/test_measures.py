"""What every measure keeps: it is logged with its fingerprint, leaves no trace, and refuses what does not fit."""

from __future__ import annotations

import pytest
import tiny
import torch
from behaviour_rows import choices, completions

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
WITH_INTERVAL = ("", "_low", "_high")


def rollouts(**changes):
    settings = {"answer": str.strip, "samples": 2, "max_new_tokens": 4, "ks": (1, 2)} | changes
    return RolloutScore(["w1", "w2 w3"], lambda text, p: float(len(text)), tiny.tokenizer(), **settings)


#: By name: the measure on given rows, a probe and questions, and the keys that it logs.
MEASURES = {
    "loss": (lambda rows, probe, asked: CompletionLoss(rows), {"loss"}),
    "preference": (
        lambda rows, probe, asked: PreferenceScore(rows, Completions(rows.prompt_ids, rows.completion_ids[::-1])),
        {"accuracy", "margin", "accuracy_per_token", "margin_per_token"},
    ),
    "memorisation": (lambda rows, probe, asked: Memorisation(rows, SCORES), {"rho", "n", "low", "high"}),
    "primacy": (lambda rows, probe, asked: FrequencyLoss(probe, COUNTS, bands=2), {"band_1", "band_2"}),
    "accuracy": (lambda rows, probe, asked: ChoiceAccuracy(asked), {"accuracy", "low", "high"}),
    "intervention": (
        lambda rows, probe, asked: SpectralIntervention(probe, asked, ks=(2,), kinds=["remove_top"]),
        {name + end for name in ("full", "remove_top_2") for end in WITH_INTERVAL},
    ),
    "rollouts": (
        lambda rows, probe, asked: rollouts(),
        {"reward", "pass@1", "pass@2", "distinct_answers", "answer_entropy", "distinct_1", "distinct_2", "no_answer",
         "length"},
    ),
}  # fmt: skip


def state_of(model):
    return (
        {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        [m.training for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [p.grad for p in model.parameters()],
        tiny.random_states(),
    )


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CompletionLoss([[1]]), TypeError, "rows is a list"),
        (lambda: PreferenceScore(["a"], completions()), TypeError, "chosen is a list.*Completions"),
        (lambda: Memorisation([[1]], SCORES), TypeError, "rows is a list"),
        (lambda: FrequencyLoss([[1, 2]], COUNTS), TypeError, "rows is a list"),
        (lambda: ChoiceAccuracy([[1]]), TypeError, "choices is a list"),
        (lambda: SpectralIntervention(tiny.probe(), [1]), TypeError, "choices is a list"),
        (lambda: SpectralIntervention([[1, 2]], choices()), TypeError, "probe is a list"),
        (lambda: CompletionLoss(completions(), batch_size=0), ValueError, "batch_size=0"),
        (lambda: PreferenceScore(completions(), completions(), batch_size=-1), ValueError, "batch_size=-1"),
        (lambda: Memorisation(completions(), SCORES, batch_size=0), ValueError, "batch_size=0"),
        (lambda: FrequencyLoss(tiny.probe(), COUNTS, batch_size=True), ValueError, "batch_size=True"),
        (lambda: ChoiceAccuracy(choices(), batch_size=0), ValueError, "batch_size=0"),
        (lambda: SpectralIntervention(tiny.probe(), choices(), batch_size=0.5), ValueError, "batch_size=0.5"),
        (lambda: rollouts(batch_size=0), ValueError, "batch_size=0"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
