"""Diversity of samples, worked by hand."""

from __future__ import annotations

import math
import sys

import pytest

from geomcallbacks.behaviour import answer_entropy, distinct_answers, distinct_n, self_bleu


def test_distinct_n():
    assert distinct_n(["a b a", "a c"], 1) == 3 / 5
    assert distinct_n(["a b a", "a c"], 2) == 1.0
    assert distinct_n(["a b", "a b", "b  a\n"], 2) == 2 / 3
    assert distinct_n(["a b", "c d"], 2) == 1.0  # "b c" spans two texts, and is none
    assert math.isnan(distinct_n(["a", ""], 2))
    with pytest.raises(TypeError, match="texts is a single string"):
        distinct_n("a b", 1)


def test_distinct_answers_and_their_entropy():
    assert distinct_answers([4, 4, 5, None]) == 3 / 4
    assert distinct_answers([None, None]) == 1 / 2
    assert answer_entropy([7, 7, 7]) == 0.0
    assert answer_entropy([1, 2, None, "x"]) == pytest.approx(math.log(4))
    assert answer_entropy([1, 1, 2, 3]) == pytest.approx(1.5 * math.log(2))


def test_self_bleu():
    """Of alike, of disjoint, and of five words of six in common: precisions 5/6, 4/5, 3/4, 2/3, no brevity penalty."""
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d e", "f g h i j"]) == 0.0
    assert self_bleu(["a b c d e", "a b c d e", "f g h i j"]) == pytest.approx(2 / 3)

    assert self_bleu(["a b c d e x", "a b c d e y"]) == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_self_bleu_uses_all_others_as_references():
    """Each half of the third text is in another one: 4-grams a b c d and e f g h of five, and so on."""
    texts = ["a b c d", "e f g h", "a b c d e f g h"]
    third = (8 / 8 * 6 / 7 * 4 / 6 * 2 / 5) ** 0.25
    # The closest reference of the third is four words long, so that it pays no brevity penalty; nor do the others,
    # whose closest reference is the other short one.
    assert self_bleu(texts) == pytest.approx((1.0 + 1.0 + third) / 3)


def test_self_bleu_without_torchmetrics_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text", None)
    with pytest.raises(ImportError, match=r"geomcallbacks\[behaviour\]"):
        self_bleu(["a", "b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distinct_n([], 1), "texts is empty"),
        (lambda: distinct_n(["a"], 0), "n=0"),
        (lambda: distinct_answers([]), "0 answers"),
        (lambda: answer_entropy([]), "0 answers"),
        (lambda: self_bleu(["a"]), "at least two"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
