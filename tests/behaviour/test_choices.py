"""Multiple choice: sets, and accuracy against a plain forward pass for each token of each option."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import scipy.stats
import tiny
import torch
from behaviour_rows import choices, one_by_one
from datasets import Dataset, DatasetDict

from geomcallbacks.behaviour import ChoiceAccuracy, Choices
from geomcallbacks.behaviour.logprobs import summed_logprobs
from geomcallbacks.behaviour.measures.accuracy import accuracy_of, option_batches


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
def test_scores_and_accuracy_are_those_of_plain_calls(kind):
    """The interval is SciPy's."""
    model, made = tiny.model(kind), choices()
    rows = zip(made.prompt_ids, made.option_ids, strict=True)
    scores = [[one_by_one(model, prompt, option) for option in options] for prompt, options in rows]
    found = summed_logprobs(model, option_batches(made, 5), 4 * 23)
    assert found.tolist() == pytest.approx([score for row in scores for score in row], rel=1e-5)
    hits = sum(row.index(max(row)) == answer for row, answer in zip(scores, made.answers, strict=True))
    interval = scipy.stats.binomtest(hits, 23).proportion_ci(0.95, method="wilson")
    measured = ChoiceAccuracy(made, batch_size=5)(model)
    assert measured == pytest.approx({"accuracy": hits / 23, "low": interval.low, "high": interval.high}, abs=1e-7)


def test_options_of_one_token_need_their_prompt_only_once():
    (batch,) = option_batches(Choices([[5, 6], [7]], [[[3], [4], [8]], [[3], [4, 9]]], [0, 1]), 8)
    rows = [tuple(row[: mask.sum()].tolist()) for row, mask in zip(batch.input_ids_bt, batch.mask_bt, strict=True)]
    assert sorted(rows) == [(5, 6), (7,), (7, 4)]
    targets = torch.stack([batch.row_m, batch.position_m, batch.target_m, batch.sum_m], dim=1).tolist()
    assert {(rows[row], *target) for row, *target in targets} == {
        ((5, 6), 1, 3, 0), ((5, 6), 1, 4, 1), ((5, 6), 1, 8, 2), ((7,), 0, 3, 3), ((7, 4), 0, 4, 4), ((7, 4), 1, 9, 4),
    }  # fmt: skip


def test_hand_worked_scores():
    """Right, wrong, a tie of two, a tie of two of three."""
    made = Choices([[1]] * 4, [[[2], [3]], [[2, 4], [3]], [[2], [3]], [[2], [3], [4]]], [0, 0, 0, 2])
    scores = torch.tensor([-1.0, -2.0, -3.0, -2.0, -1.0, -1.0, -5.0, -2.0, -2.0], dtype=torch.float64)
    assert accuracy_of(made, scores)["accuracy"] == (1 + 0 + 0.5 + 0.5) / 4
    scores[3] = math.nan
    assert all(math.isnan(value) for value in accuracy_of(made, scores).values())


FIELDS = ("support", "question", "correct_answer", "distractor1", "distractor2", "distractor3")
SCIQ = [
    dict(zip(FIELDS, row, strict=True))
    for row in ((" w1 w2", "w3", "w4", "w5 w6", "w7", "w8"), ("", "", "w5", "w5", "", ""), ("w10", "w11 w12", *"abcd"))
]


def test_sciq_is_asked_as_the_harness_asks():
    """Rows as lm-evaluation-harness has them; the row whose answer is also wrong is left out."""

    class Letters:
        eos_token_id = None

        def __call__(self, texts, **settings):
            return {"input_ids": [list(map(ord, text)) for text in texts]}

    made = Choices.from_sciq(SCIQ, Letters())
    texts = lambda rows: ["".join(map(chr, row)) for row in rows]
    assert texts(made.prompt_ids) == ["w1 w2\nQuestion: w3\nAnswer:", "w10\nQuestion: w11 w12\nAnswer:"]
    assert texts(made.option_ids[0]) == [" w5 w6", " w7", " w8", " w4"]
    assert made.answers == [3, 3]
    with pytest.raises(ValueError, match="row 0 has no text in distractor3"):
        Choices.from_sciq([{**SCIQ[0], "distractor3": None}], Letters())
    with pytest.raises(ValueError, match="rows is empty"):
        Choices.from_sciq([], Letters())


@pytest.mark.parametrize("rows", [DatasetDict(test=Dataset.from_list(SCIQ)), pd.DataFrame(SCIQ), ["w1 w2"]], ids=type)
def test_rows_without_fields_are_refused(rows):
    """Splits and tables give their names when they are gone through."""
    with pytest.raises(TypeError, match="row 0 is a str: give rows as dicts; of splits one, of a table its records"):
        Choices.from_sciq(rows, tiny.tokenizer())
    assert len(Choices.from_sciq(Dataset.from_list(SCIQ[:1]), tiny.tokenizer())) == 1


def test_saved_and_read(tmp_path):
    file, made = tmp_path / "choices.json", choices()
    made.save(file)
    read = Choices.load(file)
    assert (read.prompt_ids, read.option_ids, read.answers) == (made.prompt_ids, made.option_ids, made.answers)
    assert read.fingerprint == made.fingerprint
    content = json.loads(file.read_text())
    content["answers"][0] = (content["answers"][0] + 1) % 4
    for text, message in ((json.dumps(content), "was changed"), ("[1]", "no saved choices"), ("text", "no saved")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            Choices.load(file)


def test_fingerprint_sees_every_part():
    parts = [
        ([[1, 2]], [[[3], [4, 5]]], [0]),
        ([[1]], [[[2, 3], [4, 5]]], [0]),
        ([[1, 2]], [[[3, 4], [5]]], [0]),
        ([[1, 2]], [[[3], [4, 5]]], [1]),
    ]
    assert len({Choices(*part).fingerprint for part in parts}) == 4


def test_shortened_prompts():
    made = Choices([[1, 2, 3], [4]], [[[5], [6, 7]], [[8], [9]]], [0, 1])
    short = Choices([[2, 3], [4]], made.option_ids, made.answers)
    assert made.shortened(2).fingerprint == short.fingerprint != made.fingerprint
    with pytest.raises(ValueError, match="tokens=0"):
        made.shortened(0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([], [], []), "at least one row"),
        (([[1]], [], [0]), "1 prompt_ids, 0 option_ids, 1 answers"),
        (([[]], [[[1], [2]]], [0]), "prompt 0 has no tokens"),
        (([[1]], [[[1]]], [0]), r"row 0 has 1 option\(s\)"),
        (([[1]], [[[1], []]], [0]), "row 0, option 1 has no tokens"),
        (([[1]], [[[1], [1]]], [0]), "its answer twice"),
        (([[1]], [[[1], [2]]], [2]), r"the answer 2.*0 to 1"),
        (([[1]], [[[1], [-2]]], [0]), "token id -2"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        Choices(*rows)
