"""The ∞-gram comparison: rows, scores by brute force, SciPy's ρ, the saved file, and the recipe's set."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
from judging.pretrain_behaviour import memorisation_set
from ngram_reference import infinigram, occurrences
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats
from test_behaviour_preference import one_by_one
from text.tokens import packed_rows, train_tokenizer
from transformers import GPTNeoXForCausalLM

from geomcallbacks import Schedule
from geomcallbacks.behaviour import (
    BehaviourMonitor,
    Completions,
    Memorisation,
    NgramScores,
    continuations,
    ngram_scores,
    trivia_rows,
)


def tokens(n, seed):
    """Tokens of which few are frequent, so that much of what is held out stands in the text."""
    return [int(token) for token in np.random.default_rng(seed).zipf(1.7, n) % 50 + 3]


TEXT = [tokens(500, seed=0)]


class Brute:
    """An ∞-gram model by brute force."""

    source = "brute force"

    def probabilities(self, prompt_ids, answer_ids):
        contexts = [[*prompt_ids, *answer_ids[:i]] for i in range(len(answer_ids))]
        pairs = [infinigram(TEXT, context, token) for context, token in zip(contexts, answer_ids, strict=True)]
        return [p for p, _ in pairs], [length for _, length in pairs]


def rows(n=40, answer=3, seed=3):
    return continuations([tokens(n * (10 + answer), seed)], prompt_length=10, answer_length=answer, rows=n, seed=1)


def scores(*probabilities):
    return NgramScores([list(p) for p in probabilities], [[1] * len(p) for p in probabilities], "made by hand")


def test_log_likelihoods_worked_by_hand():
    """Zeros count as 1 or drop the row; a row of zeros alone has no likelihood either way."""
    tied = scores([0.5, 1 / 3], [1 / 6, 1.0], [1.0, 0.1 + 0.2], [0.6, 0.5]).log_likelihood()
    assert tied[0] == tied[1]
    assert tied[2] == tied[3]
    made = scores([0.5, 0.25], [0.5, 0.0], [0.0, 0.0], [1.0, 1.0])
    ln2 = math.log(2)
    np.testing.assert_allclose(made.log_likelihood("replace"), [-3 * ln2, -ln2, np.nan, 0.0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(made.log_likelihood("drop"), [-3 * ln2, np.nan, np.nan, 0.0], rtol=0, atol=1e-9)
    assert made.zero_share == 3 / 8
    with pytest.raises(ValueError, match="'replace', 'drop'"):
        made.log_likelihood("ignore")


def test_suffix_shares():
    made = NgramScores([[0.1] * 4, [0.1] * 4], [[0, 2, 2, 3], [1, 9, 30, 3]], "")
    assert made.suffix_shares(3) == {"0": 1 / 8, "1": 1 / 8, "2": 2 / 8, "3": 2 / 8, ">3": 2 / 8}
    assert sum(made.suffix_shares().values()) == 1.0


@pytest.mark.parametrize("zeros", ["replace", "drop"])
def test_rho_is_scipys_over_brute_force(zeros):
    made = rows(60)
    measure, model = Memorisation(made, ngram_scores(Brute(), made), zeros=zeros, batch_size=7), tiny.model()
    found = measure(model)
    pairs = []
    for row, (prompt, answer) in enumerate(zip(made.prompt_ids, made.completion_ids, strict=True)):
        shares = [infinigram(TEXT, prompt + answer[:i], token)[0] for i, token in enumerate(answer)]
        known = [share for share in shares if share > 0]
        if known and (zeros == "replace" or len(known) == len(shares)):
            # Counts make the shares rational: equal products are to share a rank.
            product = math.prod(Fraction(share).limit_denominator(10**6) for share in known)
            pairs.append((one_by_one(model, made, row), product))
    products = sorted({product for _, product in pairs})
    pairs = [(logprob, products.index(product)) for logprob, product in pairs]
    assert found["n"] == len(pairs)
    assert len(pairs) < 60 if zeros == "drop" else len(pairs) > 40
    assert found["rho"] == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic, abs=1e-9)
    assert -1 < found["low"] < found["rho"] < found["high"] < 1


def test_backing_off_takes_the_longest_context_that_the_token_follows():
    made = rows(30)
    plain, backed = (ngram_scores(Brute(), made, backoff=backoff, workers=3) for backoff in (False, True))
    changed = 0
    for row, (prompt, answer) in enumerate(zip(made.prompt_ids, made.completion_ids, strict=True)):
        for place, token in enumerate(answer):
            context, known = prompt + answer[:place], plain.probabilities[row][place]
            found, length = backed.probabilities[row][place], backed.suffix_lengths[row][place]
            ends = [context[len(context) - k :] for k in range(len(context), -1, -1)]
            expected = next((len(end) for end in ends if occurrences(TEXT, [*end, token])), None)
            if expected is None:
                assert found == 0
            else:
                end = context[len(context) - expected :]
                whole = occurrences(TEXT, end) if end else len(TEXT[0]) + 1
                assert (found, length) == (pytest.approx(occurrences(TEXT, [*end, token]) / whole), expected)
            assert known in (0, found)
            changed += known == 0 < found
    assert changed > 10


def test_a_model_of_the_ngrams_has_a_rho_of_one():
    """A model whose likelihoods are the index's own."""
    made = rows(30, answer=1)
    found = ngram_scores(Brute(), made, backoff=True)

    class Counting(GPTNeoXForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            logits_btv = torch.full((*input_ids.shape, tiny.VOCABULARY), -30.0)
            for b, row in enumerate(input_ids.tolist()):
                prompt = row[:10]
                answer = found.probabilities[made.prompt_ids.index(prompt)][0]
                logits_btv[b, 9] = math.log1p(-min(answer, 1 - 1e-9)) - math.log(tiny.VOCABULARY - 1)
                logits_btv[b, 9, row[10]] = math.log(answer or 1e-9)
            output.logits = logits_btv
            return output

    assert len({tuple(prompt) for prompt in made.prompt_ids}) == 30
    measure = Memorisation(made, found)
    model = Counting(tiny.CONFIGS["gpt_neox"]())
    # Probabilities that agree to the last digit in float64 may differ in float32: ranks of ties then part.
    assert measure(model)["rho"] > 0.99


def test_saved_and_loaded(tmp_path):
    made = rows()
    measure, model = Memorisation(made, ngram_scores(Brute(), made)), tiny.model()
    measure.save(tmp_path / "m.safetensors")
    loaded = Memorisation.load(tmp_path / "m.safetensors", batch_size=5)
    assert loaded.fingerprint == measure.fingerprint
    assert loaded.scores == measure.scores
    assert loaded(model) == pytest.approx(measure(model), abs=1e-12)
    dropping = Memorisation.load(tmp_path / "m.safetensors", zeros="drop")
    assert dropping(model) == Memorisation(made, measure.scores, zeros="drop")(model)
    assert dropping.fingerprint != measure.fingerprint


def test_changed_files_are_refused(tmp_path):
    made = rows()
    path = tmp_path / "m.safetensors"
    Memorisation(made, ngram_scores(Brute(), made)).save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["completion"][3] += 1
    save_file(tensors, str(path), about)
    with pytest.raises(ValueError, match="changed after it was saved"):
        Memorisation.load(path)
    tiny.probe().save(path)
    with pytest.raises(ValueError, match="not a saved Memorisation"):
        Memorisation.load(path)


def test_logged_along_a_run(tmp_path):
    made = rows()
    measure = Memorisation(made, ngram_scores(Brute(), made))
    monitor = BehaviourMonitor({"memorisation": measure}, schedule=Schedule(every=1), path=tmp_path / "b.jsonl")
    found = monitor.step(tiny.model(), 0)
    assert set(found) == {f"memorisation/{key}" for key in ("rho", "n", "low", "high")}
    assert measure.fingerprint in (tmp_path / "b.jsonl").read_text()


def test_bad_arguments():
    made = rows()
    found = ngram_scores(Brute(), made)
    with pytest.raises(TypeError, match="Completions"):
        Memorisation([[1]], found)
    with pytest.raises(ValueError, match="40 rows and 1 scores"):
        Memorisation(made, scores([0.5]))
    with pytest.raises(ValueError, match="only 3 of 4 answers"):
        Memorisation(Completions([[1]] * 4, [[2]] * 4), scores([0.5], [0.5], [0.5], [0.0]))
    with pytest.raises(ValueError, match="batch_size=0"):
        Memorisation(made, found, batch_size=0)
    with pytest.raises(ValueError, match="workers=0"):
        ngram_scores(Brute(), made, workers=0)
    measure = Memorisation(Completions([[1]] * 4, [[500]] * 4), scores(*[[0.5]] * 4))
    with pytest.raises(ValueError, match="token id 500"):
        measure.check(tiny.model())


def test_continuations_are_windows_of_one_document():
    documents = [list(range(100, 125)), list(range(200, 209)), [], list(range(300, 330))]
    made = continuations(documents, prompt_length=6, answer_length=4, rows=5)
    assert {tuple(p + a) for p, a in zip(made.prompt_ids, made.completion_ids, strict=True)} == {
        tuple(range(start, start + 10)) for start in (100, 110, 300, 310, 320)
    }
    fewer = [continuations(documents, prompt_length=6, answer_length=4, rows=2, seed=seed) for seed in range(8)]
    again = continuations(documents, prompt_length=6, answer_length=4, rows=2, seed=7)
    assert len({made.fingerprint for made in fewer}) > 1
    assert again.fingerprint == fewer[7].fingerprint
    with pytest.raises(ValueError, match="only 5 windows"):
        continuations(documents, prompt_length=6, answer_length=4, rows=6)
    with pytest.raises(ValueError, match="answer_length=0"):
        continuations(documents, prompt_length=6, answer_length=0, rows=1)


TRIVIA = [
    {"question": "Which w1 w2?", "answer": {"value": "w7 w8", "aliases": ["w9"]}, "question_id": "a"},
    {"question": "w3", "answer": {"value": "w5"}},
]


@pytest.mark.parametrize("eos", [False, True])
def test_trivia_rows(eos):
    """BOS (1), unknown words (3), "w0" is token 4; the answer follows without EOS."""
    made = trivia_rows(TRIVIA, tiny.tokenizer(eos))
    assert made.prompt_ids == [[1, 3, 3, 5, 3, 3], [1, 3, 7, 3]]
    assert made.completion_ids == [[11, 12], [9]]


def test_trivia_rows_with_a_byte_level_tokenizer():
    tokenizer = train_tokenizer(["Question: Who wrote it? Answer: Somebody wrote it."] * 3, 300)
    before = copy.copy(vars(tokenizer))
    made = trivia_rows([{"question": "Who wrote it?", "answer": {"value": "Somebody"}}], tokenizer)
    assert tokenizer.decode(made.prompt_ids[0]) == "Question: Who wrote it? Answer:"
    assert tokenizer.decode(made.completion_ids[0]) == " Somebody"
    assert vars(tokenizer) == before


@pytest.mark.parametrize(
    "bad", [{"question": "w1"}, {"question": "w1", "answer": "w2"}, {"question": "", "answer": {"value": "w2"}}]
)
def test_trivia_rows_of_another_schema(bad):
    with pytest.raises(ValueError, match="row 1 has the fields"):
        trivia_rows([TRIVIA[0], bad], tiny.tokenizer())
    with pytest.raises(ValueError, match="empty"):
        trivia_rows([], tiny.tokenizer())


def test_answers_of_another_tokenizer():
    """The ∞-gram side is scored in the tokens of its index, the model in its own."""
    questions = [{"question": f"w{i}", "answer": {"value": f"w{i + 2} w{i + 3}"}} for i in range(9)]
    own = trivia_rows(questions, tiny.tokenizer())
    others = Completions([[100 + row] for row in range(9)], [[row + 3] for row in range(1, 10)])
    found = ngram_scores(Brute(), others)
    shares = [
        infinigram(TEXT, *pair)[0]
        for pair in zip(others.prompt_ids, [a for (a,) in others.completion_ids], strict=True)
    ]
    assert found.probabilities == [[share] for share in shares]
    known = [row for row, share in enumerate(shares) if share > 0]
    assert 4 <= len(known) <= 9
    measure, model = Memorisation(own, found), tiny.model()
    expected = stats.spearmanr([one_by_one(model, own, row) for row in known], [shares[row] for row in known]).statistic
    assert measure(model)["rho"] == pytest.approx(expected, abs=1e-9)
    assert measure(model)["n"] == len(known)


def test_the_recipes_set():
    """Scores are those of brute force over the packed rows; a trained model agrees more."""
    pytest.importorskip("infini_gram", reason="no wheel of infini-gram for this machine")
    words = [f"w{i}" for i in range(30)]
    rng = np.random.default_rng(0)
    texts = [" ".join(words[int(i)] for i in rng.zipf(1.6, 60) % 30) for _ in range(80)]
    tokenizer = train_tokenizer(texts, 300)
    packed_nt = packed_rows(texts[:60], tokenizer, 17)
    measure = memorisation_set(packed_nt, texts[60:], tokenizer, 50, prompt_length=12, answer_length=3)
    stream = [packed_nt.flatten().tolist()]
    for row in range(10):
        prompt, answer = measure.rows.prompt_ids[row], measure.rows.completion_ids[row]
        expected = [infinigram(stream, prompt + answer[:i], token) for i, token in enumerate(answer)]
        assert measure.scores.probabilities[row] == pytest.approx([p for p, _ in expected], abs=1e-15)
        assert measure.scores.suffix_lengths[row] == [length for _, length in expected]
