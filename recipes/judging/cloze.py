"""Two multiple-choice sets cut from held-out text: near answers and far ones, as SciQ's and TriviaQA's differ.

*Near*: the next word, or piece of a word, is one that the last few tokens give away. *Far*: it is a name that stands
in the context, but a long way back, and hardly anywhere in the pretraining text. No model decides what is near or far:
counts of the pretraining text do. They choose the wrong options too, so that the right one is found no better than by
chance by its frequency (near), or by what an n-gram model makes of the last few tokens (far).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from geomcallbacks.behaviour import Choices
from judging.cloze_places import WORD, Place, TokenisedText, find_pieces, find_words
from judging.ngrams import NgramCounts

OPTIONS = 4
NEAR_CONTEXT, NEAR_COUNT, NEAR_SHARE = 3, 20, 0.8
"""Near: so many tokens came so often in the pretraining text, and in this share of cases before one and the same."""
FAR_COUNT, FAR_LETTERS, FAR_TOKENS = 2, 4, 8
"""Far: names that came at most so often in the pretraining text, of so many letters or more, tokens or fewer."""

Tokens = tuple[int, ...]
Options = Callable[[Place, int], list[Tokens] | None]
"""(Place of the answer, options that rank above it) -> wrong options, or None where there are too few."""


class PretrainingCounts:
    """What the sets need to know of the pretraining text: how often its words and its runs of tokens come.

    Args:
        texts: The documents that the model is trained on.
        tokenizer: The model's.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        documents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        self.ngrams = NgramCounts(documents, NEAR_CONTEXT + 1)
        self.words = Counter(word for text in texts for word in WORD.findall(text))
        self._seen = frozenset(texts)

    def tokenise(self, texts: Sequence[str]) -> list[TokenisedText]:
        """Tokenise held-out texts without special tokens.

        Raises:
            ValueError: One of them is also in the pretraining text.
        """
        for index, text in enumerate(texts):
            if text in self._seen:
                raise ValueError(f"texts[{index}] is also in the pretraining text; give held-out documents only")
        made = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [TokenisedText(*found) for found in zip(texts, made["input_ids"], made["offset_mapping"], strict=True)]


def near_cloze(
    texts: Sequence[str], counts: PretrainingCounts, *, rows: int = 400, seq_length: int = 128, seed: int = 0
) -> Choices:
    """Cut questions whose answer, a token of letters (a word or a piece of one), the last three tokens give away.

    These three came 20 times or more in the pretraining text, and in 80 % of cases or more before the answer. The
    wrong options are tokens of letters too, with a space in front where the answer has one, and next to it in
    frequency; in a quarter of the rows none of them is more frequent than the answer, in a quarter one, and so on. A
    token is the answer of 2 % of the rows at most.

    Args:
        texts: Held-out documents.
        counts: Of the pretraining text, in the tokens of the model.
        rows: Questions.
        seq_length: Most tokens of prompt and option.
        seed: Of every draw.

    Raises:
        ValueError: There are too few such places, or a text is also in the pretraining text.
    """
    pieces = find_pieces(counts.tokenise(texts))
    kinds = list(dict.fromkeys((place.spaced, place.tokens) for place in pieces))
    frequency_m = counts.ngrams.counts(np.asarray([tokens for _, tokens in kinds], dtype=np.int64).reshape(-1, 1))
    pools: dict[bool, dict[Tokens, float]] = {False: {}, True: {}}
    for (spaced, tokens), frequency in zip(kinds, frequency_m, strict=True):
        pools[spaced][tokens] = float(frequency)
    wanted = _given_away(pieces, counts.ngrams)

    def options(place: Place, above: int) -> list[Tokens] | None:
        pool = {tokens: count for tokens, count in pools[place.spaced].items() if tokens != place.tokens}
        return _nearest(pools[place.spaced][place.tokens], pool, above)

    return _draw("near", wanted, options, rows=rows, seq_length=seq_length, seed=seed, most=max(1, rows // 50))


def far_cloze(
    texts: Sequence[str],
    counts: PretrainingCounts,
    *,
    rows: int = 400,
    seq_length: int = 128,
    min_distance: int = 32,
    seed: int = 0,
) -> Choices:
    """Cut questions whose answer, a name, stands in the context, but only a long way back.

    The name came at most twice in the pretraining text. The same tokens stand in the context, and the name is not in
    its last ``min_distance`` tokens, not even inside another word. The wrong options are such rare names of other
    held-out documents that are nowhere in the context, alike in their number of tokens, a space in front, underscores
    and capitals, and in how many of their tokens stand in the last ``min_distance`` ones. They are those whose score,
    by a 4-gram model of the pretraining text, is next to that of the answer; in a quarter of the rows the model ranks
    none of them above the answer, in a quarter one, and so on. A name is the answer of 1 % of the rows at most.

    Args:
        texts: Held-out documents.
        counts: Of the pretraining text, in the tokens of the model.
        rows: Questions.
        seq_length: Most tokens of prompt and option.
        min_distance: Tokens between the name and the answer, at least.
        seed: Of every draw.

    Raises:
        ValueError: There are too few such places, a text is also in the pretraining text, or ``min_distance`` is not
            within the context.
    """
    if not 1 <= min_distance <= seq_length - 2 * FAR_TOKENS:
        raise ValueError(
            f"min_distance={min_distance} is not within a context of seq_length={seq_length} tokens that holds the name"
            f" twice; give 1 to {seq_length - 2 * FAR_TOKENS}"
        )
    names = [place for place in find_words(counts.tokenise(texts)) if _is_rare(place, counts.words)]
    wanted = _only_far(names, seq_length, min_distance)
    alike: dict[tuple[Any, ...], list[Place]] = {}
    for name in {(name.word, name.spaced): name for name in names}.values():
        alike.setdefault(_shape(name), []).append(name)
    in_document = {(name.word, name.document) for name in names}

    def options(place: Place, above: int) -> list[Tokens] | None:
        context, near = place.text_before(seq_length), frozenset(place.tokens_before(min_distance))
        pieces = _pieces_in(near, place.tokens)
        pool = [
            name.tokens
            for name in alike[_shape(place)]
            if (name.word, place.document) not in in_document
            and name.word not in context
            and _pieces_in(near, name.tokens) == pieces
        ]
        own, *scores = counts.ngrams.log_scores(place.tokens_before(NEAR_CONTEXT), [place.tokens, *pool])
        return _nearest(own, dict(zip(pool, scores, strict=True)), above)

    return _draw("far", wanted, options, rows=rows, seq_length=seq_length, seed=seed, most=max(1, rows // 100))


def _given_away(pieces: Sequence[Place], ngrams: NgramCounts) -> list[Place]:
    """Return those that an n-gram model is sure of."""
    inside = [place for place in pieces if place.start >= NEAR_CONTEXT]
    contexts = [place.tokens_before(NEAR_CONTEXT) for place in inside]
    token_m, count_m, total_m = ngrams.commonest_next(np.asarray(contexts, dtype=np.int64).reshape(-1, NEAR_CONTEXT))
    own_m = np.asarray([place.tokens[0] for place in inside], dtype=np.int64)
    sure_m = (token_m == own_m) & (total_m >= NEAR_COUNT) & (count_m >= NEAR_SHARE * total_m)
    return [inside[index] for index in np.flatnonzero(sure_m)]


def _is_rare(place: Place, words: Counter[str]) -> bool:
    letters = sum(character.isalpha() for character in place.word)
    return words[place.word] <= FAR_COUNT and letters >= FAR_LETTERS and len(place.tokens) <= FAR_TOKENS


def _shape(place: Place) -> tuple[Any, ...]:
    """What the options of a row have in common."""
    word = place.word
    return len(place.tokens), place.spaced, "_" in word.strip("_"), word.startswith("_"), word.islower(), word.isupper()


def _pieces_in(near: frozenset[int], tokens: Tokens) -> int:
    """Return how many tokens of a name stand in a context: names of one document often share their pieces."""
    return sum(token in near for token in tokens)


def _only_far(names: Sequence[Place], seq_length: int, min_distance: int) -> list[Place]:
    """Return those that stand in their context, as the same tokens, and not in its last ``min_distance`` tokens."""
    found = []
    last: dict[tuple[TokenisedText, Tokens], Place] = {}  # of each document's names
    for place in names:  # in the order of the text
        before = last.get((place.document, place.tokens))
        last[place.document, place.tokens] = place
        if before is None or before.start < place.end - seq_length or place.start - before.end < min_distance:
            continue
        if place.word not in place.text_before(min_distance):
            found.append(place)
    return found


def _nearest(own: float, pool: dict[Tokens, float], above: int) -> list[Tokens] | None:
    """Return the options next to the answer: ``above`` with a higher score than its ``own``, the rest with a lower.

    None where there are not enough of either to place the answer anywhere: otherwise its place would tell.
    """
    higher = sorted((score, tokens) for tokens, score in pool.items() if score > own)
    lower = sorted(((score, tokens) for tokens, score in pool.items() if score < own), reverse=True)
    if min(len(higher), len(lower)) < OPTIONS - 1:
        return None
    return [tokens for _, tokens in (*higher[:above], *lower[: OPTIONS - 1 - above])]


def _draw(
    kind: str, places: Sequence[Place], options: Options, *, rows: int, seq_length: int, seed: int, most: int
) -> Choices:
    """Draw questions from places, no word more often than ``most``; see `_nearest` for the options."""
    generator = random.Random(seed)
    used: Counter[str] = Counter()
    prompts, chosen, answers = [], [], []
    for place in generator.sample(list(places), len(places)):
        if len(prompts) == rows:
            break
        wrong = options(place, len(prompts) % OPTIONS) if used[place.word] < most else None
        if wrong is None:
            continue
        used[place.word] += 1
        prompts.append(place.tokens_before(seq_length - len(place.tokens)))
        answers.append(generator.randrange(OPTIONS))
        chosen.append([*wrong[: answers[-1]], place.tokens, *wrong[answers[-1] :]])
    if len(prompts) < rows:
        raise ValueError(
            f"rows={rows}: the held-out documents have only {len(prompts)} places for {kind} questions of"
            f" seq_length={seq_length}; lower the number of rows, or give more documents"
        )
    return Choices(prompts, chosen, answers)
