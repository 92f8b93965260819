"""Words and pieces of words in documents, at boundaries of tokens: where a cloze question can be asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


@dataclass(frozen=True, eq=False)
class TokenisedText:
    """A document with its token ids and, for each, the characters (begin, end) that it stands for."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    def spaced(self, token: int, begin: int) -> bool:
        """Tell whether a token, whose letters begin at character ``begin``, stands for a space before them.

        Some tokenizers leave that space out of the span: then no other token has it.
        """
        end_before = self.spans[token - 1][1] if token else 0
        return self.text[begin - 1 : begin] == " " and end_before < begin


@dataclass(frozen=True)
class Place:
    """A word or a piece of one, at boundaries of tokens.

    Attributes:
        document: Where it stands; a document is equal to itself alone.
        start: Number of its first token in the document.
        tokens: Its tokens; a space in front may be part of the first.
        word: The word, or the piece.
        spaced: Whether a space in front is part of the first token.
    """

    document: TokenisedText
    start: int
    tokens: tuple[int, ...]
    word: str
    spaced: bool

    @property
    def end(self) -> int:
        """Number of the first token behind it."""
        return self.start + len(self.tokens)

    def tokens_before(self, most: int) -> list[int]:
        """Return the last ``most`` tokens before it, or all."""
        return self.document.ids[max(0, self.start - most) : self.start]

    def text_before(self, most: int) -> str:
        """Return what the last ``most`` tokens before it stand for."""
        spans = self.document.spans[max(0, self.start - most) : self.start]
        return self.document.text[spans[0][0] : spans[-1][1]] if spans else ""


def find_words(documents: Sequence[TokenisedText]) -> list[Place]:
    """Return every whole word that begins and ends where tokens do, in the order of the text."""
    found = []
    for document in documents:
        begins = {begin: index for index, (begin, _) in enumerate(document.spans)}
        ends = {end: index for index, (_, end) in enumerate(document.spans)}
        for match in WORD.finditer(document.text):
            begin, end = match.span()
            first = begins.get(begin, begins.get(begin - 1) if document.text[begin - 1 : begin] == " " else None)
            last = ends.get(end)
            if first is not None and last is not None and first <= last:
                tokens = tuple(document.ids[first : last + 1])
                found.append(Place(document, first, tokens, match[0], document.spaced(first, begin)))
    return found


def find_pieces(documents: Sequence[TokenisedText]) -> list[Place]:
    """Return every token of nothing but letters, and a space in front of them, in the order of the text."""
    found = []
    for document in documents:
        for index, (begin, end) in enumerate(document.spans):
            piece = document.text[begin:end].removeprefix(" ")
            if piece.isascii() and piece.isalpha():
                spaced = document.spaced(index, end - len(piece))
                found.append(Place(document, index, (document.ids[index],), piece, spaced))
    return found
