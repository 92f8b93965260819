"""The tokenizer that is given: which one is meant, and which of its tokens are a text's own."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

_GIVE = (
    "give a Transformers tokenizer, as AutoTokenizer.from_pretrained(…) returns; with another library's, tokenise the "
    "texts and give their ids (ProbeSet.from_token_ids)"
)


def text_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer of texts: what was given, or what a processor of texts and images holds.

    Raises:
        TypeError: it is none.
    """
    inner = getattr(tokenizer, "tokenizer", None)
    if callable(inner) and not hasattr(tokenizer, "convert_ids_to_tokens"):
        return inner
    if isinstance(tokenizer, str):
        raise TypeError(f"tokenizer={tokenizer!r} is a str: give AutoTokenizer.from_pretrained({tokenizer!r})")
    kind = f"{type(tokenizer).__module__.partition('.')[0]}.{type(tokenizer).__qualname__}"
    if kind == "tokenizers.Tokenizer":
        raise TypeError(f"tokenizer is a {kind}: wrap it, PreTrainedTokenizerFast(tokenizer_object=tokenizer, …)")
    if not callable(tokenizer):
        raise TypeError(f"tokenizer is a {kind.removeprefix('builtins.')}: {_GIVE}")
    return tokenizer


def rows_of(tokenizer: Any, texts: Sequence[str], **settings: Any) -> list[list[int]]:
    """Return the token ids of texts, tokenised in one call.

    Raises:
        TypeError: the tokenizer does not give them.
        ValueError: a text is no Unicode.
    """
    try:
        found = [[operator.index(token) for token in row] for row in tokenizer(texts, **settings)["input_ids"]]
        if len(found) != len(texts):
            raise ValueError(f"{len(found)} rows for {len(texts)} texts")
    except Exception as error:
        raise _explained(tokenizer, dict(enumerate(texts)), error) from error
    return found


def row_of(tokenizer: Any, text: str, number: int, **settings: Any) -> list[int]:
    """Return the token ids of one text, which messages call by its number. See `rows_of`."""
    try:
        return [operator.index(token) for token in tokenizer(text, **settings)["input_ids"]]
    except Exception as error:
        raise _explained(tokenizer, {number: text}, error) from error


def _explained(tokenizer: Any, texts: Mapping[int, str], error: Exception) -> Exception:
    """Say whose fault it is: a text's that holds half of a surrogate pair, as JSON can, or the tokenizer's."""
    for number, text in texts.items():
        try:
            text.encode()
        except UnicodeError:
            return ValueError(f"text {number} is no Unicode that a tokenizer takes: clean the texts ({error})")
    kind = type(tokenizer).__qualname__
    return TypeError(f"tokenizer is a {kind}, which gives no list of token ids for a text ({error}): {_GIVE}")


def repeated_front(tokenizer: Any, text: str, row: Sequence[int]) -> int:
    """Return how many tokens, BOS of most, stand twice in front: in the text and because the tokenizer adds them.

    A text that a chat template rendered begins with them already.

    Args:
        tokenizer: the text's.
        text: the text.
        row: its token ids, with what the tokenizer adds.
    """
    if not any(row[:many] == row[many : 2 * many] for many in range(1, min(4, len(row) // 2) + 1)):
        return 0
    part, settings = text[:1000], {"verbose": False}
    full, own = (row_of(tokenizer, part, 0, add_special_tokens=special, **settings) for special in (True, False))
    added = next((at for at in range(len(full) - len(own) + 1) if full[at : at + len(own)] == own), 0)
    return added if added and own[:added] == full[:added] else 0


class Markup:
    """The tokens of a tokenizer that mark where a text or a turn ends, and are no content.

    They are its special tokens but for that of unknown words, and the added tokens that its chat template writes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = getattr(tokenizer, "decode", None)
        self._blank: dict[int, bool] = {}
        template = str(getattr(tokenizer, "chat_template", None) or "")
        marks = set(getattr(tokenizer, "all_special_ids", ()))
        for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
            if added.special or (str(added).strip() and str(added) in template):
                marks.add(token)
        marks -= {getattr(tokenizer, "unk_token_id", None)}
        marks |= {getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "sep")}  # GPT-2's EOS is its unk too
        self._ids = marks - {None}

    def without_end(self, row: list[int]) -> list[int]:
        """Return a row up to its last token of content: without the marks behind it, and the blanks behind a mark."""
        end = len(row)
        while True:
            mark = end
            while mark and self._is_blank(row[mark - 1]):
                mark -= 1
            if not mark or row[mark - 1] not in self._ids:
                return row[:end]
            end = mark - 1

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            content = self._decode is None or token in self._ids or self._decode([token]).strip()
            self._blank[token] = not content
        return self._blank[token]
