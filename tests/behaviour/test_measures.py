"""What every measure keeps: it is logged with its fingerprint, leaves no trace, and refuses what does not fit."""

from __future__ import annotations

import pytest
import tiny
from behaviour_measures import KEYS, make, rollouts
from behaviour_rows import choices, completions, state_of

from geomcallbacks import ProbeSet, behaviour, read_records


@pytest.mark.parametrize("name", KEYS)
def test_logged_with_its_fingerprint_and_leaves_no_trace(name, tmp_path):
    """A model with dropout, one block of it in evaluation mode."""
    measure = make(name, completions(), tiny.probe(), choices())
    model = tiny.model(attention_dropout=0.5, hidden_dropout=0.5)
    model.gpt_neox.layers[1].eval()
    before = state_of(model)
    monitor = behaviour.BehaviourMonitor({"it": measure}, path=tmp_path / "behaviour.jsonl", on_error="raise")
    monitor.start(model)
    values = monitor.measure(model, 0)
    monitor.close()
    assert state_of(model) == before
    assert values == {f"it/{key}": value for key, value in measure(model).items()}  # no dropout: the same again
    assert values.keys() == {f"it/{key}" for key in KEYS[name].split()}
    (record,) = read_records(tmp_path / "behaviour.jsonl")
    assert {key: record[key] for key in values} == values
    assert measure.fingerprint in (tmp_path / "behaviour.jsonl").read_text()


@pytest.mark.parametrize("name", list(KEYS)[:-1])
@pytest.mark.parametrize(("tokens", "message"), [([5, 120], "token id 120"), ([5] * 70, r"70 tokens.* 64 positions")])
def test_rows_that_do_not_fit_the_model_are_refused(name, tokens, message):
    """Each measure's rows, then the intervention's probe alone; at a call too, or an index error would follow."""
    rows = behaviour.Completions([tokens[:1]] * 11, [tokens[1:]] * 11)
    probe = ProbeSet.from_token_ids([[5, 6], tokens] * 20)
    asked = behaviour.Choices([tokens[:1]], [[tokens[1:], [6]]], [0])
    model = tiny.model("gpt2")
    for measure in (make(name, rows, probe, asked), make("intervention", rows, probe, choices())):
        with pytest.raises(ValueError, match=message):
            measure.check(model)
        with pytest.raises(ValueError, match=message):
            measure(model)


def test_prompts_that_leave_no_room_to_sample_are_refused():
    with pytest.raises(ValueError, match=r"66 tokens.* 64 positions"):
        rollouts(max_new_tokens=63).check(tiny.model("gpt2"))


@pytest.mark.parametrize("name", KEYS)
def test_wrong_arguments_are_refused(name):
    for batch_size in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
            make(name, completions(), tiny.probe(), choices(), batch_size=batch_size)
    if name != "rollouts":
        with pytest.raises(TypeError, match="is a list: give a"):
            make(name, [[1]], [[1]], [[1]])
