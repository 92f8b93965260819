"""The ∞-gram comparison: scores by brute force, SciPy's ρ, and the saved file."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import tiny
from behaviour_rows import one_by_one
from ngram_reference import infinigram
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats

from geomcallbacks.behaviour import Completions, Memorisation, NgramScores, continuations, ngram_scores


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


def rows(n=40, answer=3):
    return continuations([tokens(n * (10 + answer), 3)], prompt_length=10, answer_length=answer, rows=n, seed=1)


def scores(*probabilities):
    return NgramScores([list(p) for p in probabilities], [[1] * len(p) for p in probabilities], "made by hand")


def test_log_likelihoods_worked_by_hand():
    """Zeros count as 1 or drop the row; a row of zeros alone has no likelihood either way."""
    tied = scores([0.5, 1 / 3], [1 / 6, 1.0], [1.0, 0.1 + 0.2], [0.6, 0.5]).log_likelihood()
    assert (tied[0], tied[2]) == (tied[1], tied[3])
    made = scores([0.5, 0.25], [0.5, 0.0], [0.0, 0.0], [1.0, 1.0])
    ln2 = math.log(2)
    np.testing.assert_allclose(made.log_likelihood("replace"), [-3 * ln2, -ln2, np.nan, 0.0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(made.log_likelihood("drop"), [-3 * ln2, np.nan, np.nan, 0.0], rtol=0, atol=1e-9)
    assert made.zero_share == 3 / 8


@pytest.mark.parametrize("zeros", ["replace", "drop"])
def test_rho_is_scipys_over_brute_force(zeros):
    made = rows(60)
    measure, model = Memorisation(made, ngram_scores(Brute(), made), zeros=zeros, batch_size=7), tiny.model()
    found = measure(model)
    logprobs, products = [], []
    for prompt, answer in zip(made.prompt_ids, made.completion_ids, strict=True):
        shares = [infinigram(TEXT, prompt + answer[:i], token)[0] for i, token in enumerate(answer)]
        known = [share for share in shares if share > 0]
        if known and (zeros == "replace" or len(known) == len(shares)):
            # Counts make the shares rational: equal products are to share a rank.
            products.append(math.prod(Fraction(share).limit_denominator(10**6) for share in known))
            logprobs.append(one_by_one(model, prompt, answer))
    ranks = [sorted(set(products)).index(product) for product in products]
    assert found["n"] == len(ranks)
    assert len(ranks) < 60 if zeros == "drop" else len(ranks) > 40
    assert found["rho"] == pytest.approx(stats.spearmanr(logprobs, ranks).statistic, abs=1e-9)
    assert -1 < found["low"] < found["rho"] < found["high"] < 1


def test_backing_off_takes_the_longest_context_that_the_token_follows():
    made = rows(30)
    plain, backed = (ngram_scores(Brute(), made, backoff=backoff, workers=3) for backoff in (False, True))
    changed = 0
    for row, (prompt, answer) in enumerate(zip(made.prompt_ids, made.completion_ids, strict=True)):
        for place, token in enumerate(answer):
            context = prompt + answer[:place]
            ends = [infinigram(TEXT, context[start:], token) for start in range(len(context) + 1)]
            expected = next((end for end in ends if end[0] > 0), ends[-1])
            assert (backed.probabilities[row][place], backed.suffix_lengths[row][place]) == expected
            changed += plain.probabilities[row][place] == 0 < expected[0]
    assert changed > 10


def test_saved_and_loaded(tmp_path):
    made, model = rows(), tiny.model()
    for zeros in ("replace", "drop"):
        measure = Memorisation(made, ngram_scores(Brute(), made), zeros=zeros)
        measure.save(tmp_path / "m.safetensors")
        loaded = Memorisation.load(tmp_path / "m.safetensors", batch_size=5)
        assert (loaded.fingerprint, loaded.scores, loaded.zeros) == (measure.fingerprint, measure.scores, zeros)
        assert loaded(model) == pytest.approx(measure(model), abs=1e-12)
    assert Memorisation(made, measure.scores).fingerprint != measure.fingerprint


def test_changed_files_are_refused(tmp_path):
    made = rows()
    path = tmp_path / "m.safetensors"
    Memorisation(made, ngram_scores(Brute(), made)).save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["completion"][3] += 1
    save_file(tensors, str(path), header)
    with pytest.raises(ValueError, match="changed after it was saved"):
        Memorisation.load(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="or was torn"):
        Memorisation.load(path)
    tiny.probe().save(path)
    with pytest.raises(ValueError, match="not a saved Memorisation"):
        Memorisation.load(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Memorisation(rows(), scores([0.5])), "40 rows, 1 scores"),
        (lambda: Memorisation(Completions([[1]] * 4, [[2]] * 4), scores(*[[0.5]] * 3, [0.0])), "only 3 of 4 answers"),
        (lambda: Memorisation(rows(), scores(*[[0.5]] * 40), zeros="ignore"), "'replace' or 'drop'"),
        (lambda: ngram_scores(Brute(), rows(), workers=0), "workers=0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
