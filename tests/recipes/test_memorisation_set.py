"""The recipe's ∞-gram comparison: scores of held-out continuations are those of brute force over the packed rows."""

from __future__ import annotations

import numpy as np
import pytest
from judging.memorisation_set import memorisation_set
from ngram_reference import infinigram
from text.tokens import packed_rows, train_tokenizer


def test_the_recipes_set() -> None:
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
