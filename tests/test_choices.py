"""Multiple choice: sets, and accuracy against a plain forward pass for each token of each option."""

from __future__ import annotations

import json
import math
import random

import pytest
import scipy.stats
import tiny
import torch

from geomcallbacks.behaviour import BehaviourMonitor, ChoiceAccuracy, Choices
from geomcallbacks.behaviour.option_scores import accuracy_of, option_batches, wilson


def choices(n=23, seed=0, options=4):
    """Random rows whose options have one to three tokens, some of them with a common beginning."""
    draw = random.Random(seed)
    tokens = lambda length: [draw.randrange(3, tiny.VOCABULARY) for _ in range(length)]
    rows = []
    for _ in range(n):
        row = [tokens(draw.randint(1, 3)) for _ in range(options)]
        row[1] = [*row[0], *tokens(1)]
        rows.append(row)
    return Choices([tokens(draw.randint(1, 20)) for _ in range(n)], rows, [draw.randrange(options) for _ in range(n)])


def one_by_one(model, made):
    """Summed log-probability of every option: Transformers' own call for every prefix."""
    found = []
    for prompt, options in zip(made.prompt_ids, made.option_ids, strict=True):
        for option in options:
            ids, total = list(prompt), 0.0
            for token in option:
                with torch.no_grad():
                    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].double()
                total += float(logits[token] - logits.logsumexp(0))
                ids.append(token)
            found.append(total)
    return found


def hits(scores, made):
    found = [max(range(4), key=scores[start : start + 4].__getitem__) for start in range(0, len(scores), 4)]
    return sum(one == answer for one, answer in zip(found, made.answers, strict=True))


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
def test_accuracy_is_that_of_plain_calls(kind):
    model, made = tiny.model(kind), choices()
    scores = one_by_one(model, made)
    per_token = [s / len(o) for s, o in zip(scores, (o for row in made.option_ids for o in row), strict=True)]
    assert ChoiceAccuracy(made, batch_size=5)(model)["accuracy"] == pytest.approx(hits(scores, made) / 23)
    assert ChoiceAccuracy(made, normalise="tokens")(model)["accuracy"] == pytest.approx(hits(per_token, made) / 23)


def test_a_model_that_knows_the_answers():
    """Trained on its rows it knows them all; on other answers to the same rows, which it was told are wrong, none."""
    made = choices(4)
    model = tiny.model("llama")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        for prompt, options, answer in zip(made.prompt_ids, made.option_ids, made.answers, strict=True):
            ids = torch.tensor([prompt + options[answer]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    known = ChoiceAccuracy(made, normalise="tokens")(model)
    assert known["accuracy"] == 1.0
    assert known["high"] == pytest.approx(1.0)
    others = Choices(made.prompt_ids, made.option_ids, [(answer + 2) % 4 for answer in made.answers])
    assert ChoiceAccuracy(others, normalise="tokens")(model)["accuracy"] == 0.0


def test_options_of_one_token_need_their_prompt_only_once():
    made = Choices([[5, 6], [7]], [[[3], [4], [8]], [[3], [4, 9]]], [0, 1])
    (batch,) = option_batches(made, 8, torch.device("cpu"))
    rows = [tuple(row[: mask.sum()].tolist()) for row, mask in zip(batch.input_ids_bt, batch.mask_bt, strict=True)]
    assert sorted(rows) == [(5, 6), (7,), (7, 4)]
    seen = {
        (rows[row], position, target, option)
        for row, position, target, option in zip(
            batch.row_m.tolist(),
            batch.position_m.tolist(),
            batch.target_m.tolist(),
            batch.option_m.tolist(),
            strict=True,
        )
    }
    assert seen == {
        ((5, 6), 1, 3, 0), ((5, 6), 1, 4, 1), ((5, 6), 1, 8, 2), ((7,), 0, 3, 3), ((7, 4), 0, 4, 4), ((7, 4), 1, 9, 4),
    }  # fmt: skip


def test_hand_worked_scores():
    made = Choices([[1]] * 4, [[[2], [3]], [[2, 4], [3]], [[2], [3]], [[2], [3], [4]]], [0, 0, 0, 2])
    scores = torch.tensor([-1.0, -2.0, -3.0, -2.0, -1.0, -1.0, -5.0, -2.0, -2.0], dtype=torch.float64)
    # right, wrong, a tie of two, a tie of two of three
    assert accuracy_of(made, scores)["accuracy"] == (1 + 0 + 0.5 + 0.5) / 4
    # per token −1.5 > −2: right
    assert accuracy_of(made, scores, "tokens")["accuracy"] == (1 + 1 + 0.5 + 0.5) / 4
    assert made.chance == pytest.approx((0.5 + 0.5 + 0.5 + 1 / 3) / 4)
    scores[3] = math.nan
    assert all(math.isnan(value) for value in accuracy_of(made, scores).values())


@pytest.mark.parametrize(("hit", "n"), [(0, 10), (10, 10), (250, 1000), (3, 7)])
def test_interval_is_scipys(hit, n):
    interval = scipy.stats.binomtest(hit, n).proportion_ci(0.95, method="wilson")
    assert wilson(hit / n, n) == pytest.approx((interval.low, interval.high), abs=1e-7)


SCIQ = [
    {"support": " w1 w2", "question": "w3", "correct_answer": "w4", "distractor1": "w5 w6", "distractor2": "w7",
     "distractor3": "w8"},
    {"support": "", "question": "w9", "correct_answer": "w5", "distractor1": "w5", "distractor2": "w7",
     "distractor3": "w8"},
    {"support": "w10", "question": "w11 w12", "correct_answer": "w13", "distractor1": "w14", "distractor2": "w15",
     "distractor3": "w16"},
]  # fmt: skip


def test_sciq():
    """BOS is 1, an unknown word ("Question:", "Answer:") 3, "w0" 4; the row whose answer is also wrong is left out."""
    made = Choices.from_sciq(SCIQ, tiny.tokenizer(eos=True))
    assert made.prompt_ids == [[1, 5, 6, 3, 7, 3], [1, 14, 3, 15, 16, 3]]
    assert made.option_ids == [[[9, 10], [11], [12], [8]], [[18], [19], [20], [17]]]
    assert made.answers == [3, 3]
    assert made.dropped == 1
    cut = Choices.from_sciq(SCIQ, tiny.tokenizer(), max_length=5)
    assert cut.prompt_ids == [[1, 7, 3], [1, 15, 16, 3]]  # the longest option of the first has two tokens
    with pytest.raises(ValueError, match=r"row 0 has no text in distractor3"):
        Choices.from_sciq([{**SCIQ[0], "distractor3": None}], tiny.tokenizer())
    with pytest.raises(ValueError, match="rows is empty"):
        Choices.from_sciq([], tiny.tokenizer())
    with pytest.raises(ValueError, match="max_length leaves 1 token"):
        Choices.from_sciq(SCIQ, tiny.tokenizer(), max_length=3)


def test_sciq_prompt_is_the_harness_form():
    class Spy:
        eos_token_id = bos_token_id = None
        texts: list[str] = []  # noqa: RUF012

        def __call__(self, texts, **settings):
            Spy.texts += texts
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    Choices.from_sciq(SCIQ[:1], Spy())
    assert "w1 w2\nQuestion: w3\nAnswer:" in Spy.texts
    assert {" w4", " w5 w6", " w7", " w8"} <= set(Spy.texts)


def test_saved_and_read(tmp_path):
    made = choices()
    made.save(tmp_path / "choices.json")
    read = Choices.load(tmp_path / "choices.json")
    assert (read.prompt_ids, read.option_ids, read.answers) == (made.prompt_ids, made.option_ids, made.answers)
    assert read.fingerprint == made.fingerprint
    content = json.loads((tmp_path / "choices.json").read_text())
    content["answers"][0] = (content["answers"][0] + 1) % 4
    (tmp_path / "changed.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was changed"):
        Choices.load(tmp_path / "changed.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="no saved choices"):
        Choices.load(tmp_path / "other.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(ValueError, match="no saved choices"):
        Choices.load(tmp_path / "text.json")


def test_fingerprint_sees_every_part():
    base = Choices([[1, 2]], [[[3], [4, 5]]], [0])
    others = [
        Choices([[1]], [[[2, 3], [4, 5]]], [0]),
        Choices([[1, 2]], [[[3, 4], [5]]], [0]),
        Choices([[1, 2]], [[[3], [4, 5]]], [1]),
    ]
    assert len({made.fingerprint for made in (base, *others)}) == 4


def test_shortened_prompts():
    made = Choices([[1, 2, 3], [4]], [[[5], [6, 7]], [[8], [9]]], [0, 1])
    short = made.shortened(2)
    assert short.prompt_ids == [[2, 3], [4]]
    assert (short.option_ids, short.answers) == (made.option_ids, made.answers)
    with pytest.raises(ValueError, match="tokens=0"):
        made.shortened(0)


def test_logged_by_the_monitor(tmp_path):
    model, made = tiny.model(), choices()
    before, modes = tiny.random_states(), [m.training for m in model.modules()]
    monitor = BehaviourMonitor({"sciq": ChoiceAccuracy(made)}, path=tmp_path / "behaviour.jsonl")
    monitor.start(model)
    values = monitor.measure(model, 0)
    monitor.close()
    assert set(values) == {"sciq/accuracy", "sciq/low", "sciq/high"}
    assert tiny.random_states() == before
    assert [m.training for m in model.modules()] == modes
    assert made.fingerprint in (tmp_path / "behaviour.jsonl").read_text()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Choices([], [], []), ValueError, "empty"),
        (lambda: Choices([[1]], [], [0]), ValueError, "1 prompt_ids, 0 option_ids and 1 answers"),
        (lambda: Choices([[]], [[[1], [2]]], [0]), ValueError, "prompt 0 has no tokens"),
        (lambda: Choices([[1]], [[[1]]], [0]), ValueError, r"row 0 has 1 option\(s\)"),
        (lambda: Choices([[1]], [[[1], []]], [0]), ValueError, "option without tokens"),
        (lambda: Choices([[1]], [[[1], [1]]], [0]), ValueError, "its answer twice"),
        (lambda: Choices([[1]], [[[1], [2]]], [2]), ValueError, "the answer 2.*0 to 1"),
        (lambda: Choices([[1]], [[[1], [-2]]], [0]), ValueError, "token id -2"),
        (lambda: ChoiceAccuracy([[1]]), TypeError, "choices is a list"),
        (lambda: ChoiceAccuracy(choices(), batch_size=0), ValueError, "batch_size=0"),
        (lambda: ChoiceAccuracy(choices(), normalise="bytes"), ValueError, "normalise='bytes'"),
        (lambda: accuracy([[1]], [[[1], [120]]]), ValueError, "token id 120"),
        (lambda: accuracy([[1] * 63], [[[1], [2, 3]]]), ValueError, "64 positions"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def accuracy(prompts, options):
    return ChoiceAccuracy(Choices(prompts, options, [0]))(tiny.model("gpt2"))
