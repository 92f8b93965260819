"""How much samples differ from each other. Words are what whitespace separates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from geomcallbacks.behaviour.arguments import check_equal_lengths, check_positive, check_texts


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the texts (Li et al. 2016, arXiv 1510.03055); none spans two texts.

    Returns:
        A share within 0 and 1; NaN where no text has n words.

    Raises:
        TypeError, ValueError: this is no list of texts, there are none, or n is not positive.
    """
    check_texts("texts", texts)
    check_positive(n=n)
    split = [text.split() for text in texts]
    grams = [tuple(words[start : start + n]) for words in split for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def distinct_answers(answers: Sequence[Hashable | None]) -> float:
    """Distinct answers over samples, of one prompt. None, no answer, counts as an answer.

    Raises:
        ValueError: there are no answers.
    """
    check_equal_lengths(answers=answers)
    return len(set(answers)) / len(answers)


def answer_entropy(answers: Sequence[Hashable | None]) -> float:
    """Entropy of the answers to one prompt in nats, from 0 (all alike) to the logarithm of their number.

    None, no answer, counts as an answer.

    Raises:
        ValueError: there are no answers.
    """
    check_equal_lengths(answers=answers)
    shares = [count / len(answers) for count in Counter(answers).values()]
    return sum(share * math.log(1 / share) for share in shares)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4, unsmoothed, of each text against all others: 1 where all are alike (Zhu et al. 2018, arXiv
    1802.01886). The number grows with the number of texts, and so does the cost, with its square. A text of fewer than
    four words scores 0 even against its like.

    Raises:
        ValueError: there are fewer than two texts.
        ImportError: torchmetrics is missing.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} texts have no others to be compared with: give at least two")
    bleu_score = import_bleu()
    scores = [float(bleu_score([text], [[*texts[:i], *texts[i + 1 :]]], n_gram=4)) for i, text in enumerate(texts)]
    return sum(scores) / len(scores)


def import_bleu() -> Any:
    """BLEU of torchmetrics, or ``ImportError``, naming the extra to install, where it is missing."""
    try:
        from torchmetrics.functional.text import bleu_score
    except ImportError as error:
        raise ImportError("self_bleu needs torchmetrics: pip install 'geomcallbacks[behaviour]'") from error
    return bleu_score
