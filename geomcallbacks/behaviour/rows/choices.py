"""Choices: fixed multiple-choice questions, as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from geomcallbacks.behaviour.arguments import check_equal_lengths, check_positive
from geomcallbacks.behaviour.rows.token_ids import check_unchanged, encode, encode_prompts, fingerprint_of, token_lists
from geomcallbacks.running.files import replace_file

_FORMAT = "geomcallbacks.choices.v1"
_SCIQ_OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


class Choices:
    """Fixed rows of a prompt, the options that may follow it, and which of them is right.

    Args:
        prompt_ids: tokens of each row's prompt, at least one.
        option_ids: for each row its options, at least two, each of at least one token.
        answers: for each row the number of the right option, from 0.

    Raises:
        ValueError: no rows, differing numbers of them, an empty prompt or option, an answer that is none of the
            options or is there twice, or a negative id.
    """

    def __init__(
        self, prompt_ids: Sequence[Sequence[int]], option_ids: Sequence[Sequence[Sequence[int]]], answers: Sequence[int]
    ) -> None:
        check_equal_lengths(prompt_ids=prompt_ids, option_ids=option_ids, answers=answers)
        self.prompt_ids = token_lists("prompt", prompt_ids)
        self.option_ids = [token_lists(f"row {row}, option", options) for row, options in enumerate(option_ids)]
        self.answers = [int(answer) for answer in answers]
        for row, (options, answer) in enumerate(zip(self.option_ids, self.answers, strict=True)):
            if len(options) < 2:
                raise ValueError(f"row {row} has {len(options)} option(s): give at least two")
            if not 0 <= answer < len(options):
                raise ValueError(f"row {row} has the answer {answer}: give one of its options, 0 to {len(options) - 1}")
            if options.count(options[answer]) > 1:
                raise ValueError(f"row {row} has its answer twice among the options: give it once")

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __repr__(self) -> str:
        return f"Choices({len(self)} rows, fingerprint={self.fingerprint})"

    @classmethod
    def from_sciq(cls, rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> Choices:
        r"""Questions of SciQ's schema (Welbl et al. 2017, arXiv 1707.06209), in the form that lm-evaluation-harness
        gives them: the support, "\nQuestion: …", "\nAnswer:", and each option behind a space.

        Prompt and option are tokenised apart, so that the boundary between them is a boundary of tokens; BOS as the
        tokenizer adds it, no EOS. Options stand in the harness's order, distractors first; each is scored by itself
        and ties are shared, so that the order changes nothing. A row whose answer is also a distractor is left out.

        Args:
            rows: `support`, `question`, `correct_answer` and `distractor1` to `distractor3`, as text.
            tokenizer: a Transformers tokenizer, or a processor that holds one; it is copied, not changed.

        Raises:
            ValueError: there are no rows, or one lacks a field.
            TypeError: a row has no fields, or `tokenizer` is none.
        """
        prompts: list[str] = []
        texts: list[str] = []
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):  # names of columns or of splits
                kind = type(row).__name__
                raise TypeError(f"row {index} is a {kind}: give rows as dicts; of splits one, of a table its records")
            missing = [name for name in ("support", "question", *_SCIQ_OPTIONS) if not isinstance(row.get(name), str)]
            if missing:
                raise ValueError(f"row {index} has no text in {', '.join(missing)}: give rows of SciQ's schema")
            *wrong, right = (f" {row[name].strip()}" for name in _SCIQ_OPTIONS)
            if right not in wrong:
                prompts.append(f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:")
                texts += [*wrong, right]
        if not prompts:
            raise ValueError("rows is empty: give at least one question")
        # All options in one call: the tokenizer is copied, which takes long for a large vocabulary.
        flat, count = encode(texts, tokenizer, special=False), len(_SCIQ_OPTIONS)
        option_ids = [flat[start : start + count] for start in range(0, len(flat), count)]
        return cls(encode_prompts(prompts, tokenizer), option_ids, [count - 1] * len(prompts))

    def shortened(self, tokens: int) -> Choices:
        """The same questions with at most the last `tokens` of each prompt: what a model answers without the rest.

        Raises:
            ValueError: `tokens` is not positive.
        """
        check_positive(tokens=tokens)
        return Choices([prompt[-tokens:] for prompt in self.prompt_ids], self.option_ids, self.answers)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over prompts, options and answers."""
        rows = zip(self.prompt_ids, self.option_ids, self.answers, strict=True)
        lengths_and_ids = (
            [len(prompt), len(options), *map(len, options), answer, *prompt, *chain(*options)]
            for prompt, options, answer in rows
        )
        return fingerprint_of(_FORMAT, lengths_and_ids)

    @property
    def max_token_id(self) -> int:
        """The largest token id in any row."""
        return max(max(ids) for rows in (self.prompt_ids, *self.option_ids) for ids in rows)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with its longest option."""
        rows = zip(self.prompt_ids, self.option_ids, strict=True)
        return max(len(prompt) + max(map(len, options)) for prompt, options in rows)

    def save(self, path: str | Path) -> None:
        """Write the rows to a JSON file."""
        columns = {"prompt_ids": self.prompt_ids, "option_ids": self.option_ids, "answers": self.answers}
        content = {"format": _FORMAT, "fingerprint": self.fingerprint, **columns}
        replace_file(Path(path).expanduser(), json.dumps(content).encode())

    @classmethod
    def load(cls, path: str | Path) -> Choices:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds no choices, or they do not match their fingerprint.
        """
        try:
            content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text
            raise ValueError(f"{path} holds no saved choices: {error}") from error
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        if found != _FORMAT:
            raise ValueError(f"{path} holds no saved choices: its format reads {found!r}")
        choices = cls(content["prompt_ids"], content["option_ids"], content["answers"])
        check_unchanged(path, choices.fingerprint, content["fingerprint"])
        return choices
