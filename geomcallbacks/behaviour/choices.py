"""Choices: fixed multiple-choice questions, as token ids."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geomcallbacks.behaviour.completions import Completions, encode_prompts

_FORMAT = "geomcallbacks.choices.v1"
_SCIQ_OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


class Choices:
    """Fixed rows of a prompt, the options that may follow it, and which of them is right.

    Args:
        prompt_ids: tokens of each row's prompt, at least one.
        option_ids: for each row its options, at least two, each of at least one token.
        answers: for each row the number of the right option, from 0.
        dropped: rows that were left out while these were built.

    Raises:
        ValueError: no rows, differing numbers of them, an empty prompt or option, an answer that is none of the
            options or is there twice, or a negative id.
    """

    def __init__(
        self,
        prompt_ids: Sequence[Sequence[int]],
        option_ids: Sequence[Sequence[Sequence[int]]],
        answers: Sequence[int],
        *,
        dropped: int = 0,
    ) -> None:
        if not len(prompt_ids) == len(option_ids) == len(answers):
            raise ValueError(
                f"{len(prompt_ids)} prompt_ids, {len(option_ids)} option_ids and {len(answers)} answers: give one of"
                " each for every row"
            )
        if not len(prompt_ids):
            raise ValueError("prompt_ids is empty: give at least one row")
        self.prompt_ids = [[int(token) for token in row] for row in prompt_ids]
        self.option_ids = [[[int(token) for token in option] for option in row] for row in option_ids]
        self.answers = [int(answer) for answer in answers]
        self.dropped = dropped
        for index in range(len(self)):
            _check_row(index, self.prompt_ids[index], self.option_ids[index], self.answers[index])
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __repr__(self) -> str:
        return f"Choices({len(self)} rows, chance {self.chance:.3g}, fingerprint={self.fingerprint})"

    @classmethod
    def from_sciq(cls, rows: Iterable[Mapping[str, Any]], tokenizer: Any, *, max_length: int | None = None) -> Choices:
        r"""Questions of SciQ's schema (Welbl et al. 2017, arXiv 1707.06209), in the form that lm-evaluation-harness
        gives them: the support, "\nQuestion: …", "\nAnswer:", and each option behind a space.

        Prompt and option are tokenised apart, so that the boundary between them is a boundary of tokens; BOS as the
        tokenizer adds it, no EOS. Options stand in the harness's order, distractors first; each is scored by itself
        and ties are shared, so that the order changes nothing. A row whose answer is also a distractor is left out.

        Args:
            rows: `support`, `question`, `correct_answer` and `distractor1` to `distractor3`, as text.
            tokenizer: a Transformers tokenizer; it is copied, not changed.
            max_length: most tokens of a row. A longer prompt loses tokens from its left end, but not its BOS. None: as
                they are.

        Raises:
            ValueError: there are no rows, one lacks a field, or `max_length` leaves no room for a prompt.
        """
        prompts: list[str] = []
        texts: list[str] = []
        dropped = 0
        for index, row in enumerate(rows):
            missing = [name for name in ("support", "question", *_SCIQ_OPTIONS) if not isinstance(row.get(name), str)]
            if missing:
                raise ValueError(f"row {index} has no text in {', '.join(missing)}: give rows of SciQ's schema")
            *wrong, right = (f" {row[name].strip()}" for name in _SCIQ_OPTIONS)
            if right in wrong:
                dropped += 1
                continue
            prompts.append(f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:")
            texts += [*wrong, right]
        if not prompts:
            raise ValueError("rows is empty: give at least one question")
        # Once for all: the tokenizer is copied, which takes long for a large vocabulary.
        flat = Completions.from_texts(texts, texts, tokenizer, max_length=sys.maxsize, append_eos=False).completion_ids
        count = len(_SCIQ_OPTIONS)
        option_ids = [flat[start : start + count] for start in range(0, len(flat), count)]
        prompt_ids = encode_prompts(prompts, tokenizer)
        if max_length is not None:
            begin = getattr(tokenizer, "bos_token_id", None)
            room = [max_length - max(map(len, row)) for row in option_ids]
            prompt_ids = [_cut(row, most, begin) for row, most in zip(prompt_ids, room, strict=True)]
        return cls(prompt_ids, option_ids, [count - 1] * len(prompt_ids), dropped=dropped)

    def shortened(self, tokens: int) -> Choices:
        """The same questions with at most the last `tokens` of each prompt: what a model answers without the rest.

        Raises:
            ValueError: `tokens` is not positive.
        """
        if tokens < 1:
            raise ValueError(f"tokens={tokens} leaves no prompt: give 1 or more")
        return Choices([prompt[-tokens:] for prompt in self.prompt_ids], self.option_ids, self.answers)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over prompts, options and answers."""
        if self._fingerprint is None:
            digest = hashlib.sha256(_FORMAT.encode())
            for prompt, options, answer in zip(self.prompt_ids, self.option_ids, self.answers, strict=True):
                lengths = [len(prompt), len(options), *map(len, options), answer]
                digest.update(array("q", [*lengths, *prompt, *(t for option in options for t in option)]).tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    @property
    def chance(self) -> float:
        """Accuracy of a guess: the mean of one over the number of options."""
        return sum(1 / len(options) for options in self.option_ids) / len(self)

    @property
    def max_token_id(self) -> int:
        """The largest token id in any row."""
        options = (option for row in self.option_ids for option in row)
        return max(max(row) for row in (*self.prompt_ids, *options))

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with its longest option."""
        rows = zip(self.prompt_ids, self.option_ids, strict=True)
        return max(len(prompt) + max(map(len, options)) for prompt, options in rows)

    def save(self, path: str | Path) -> None:
        """Write the rows to a JSON file."""
        content = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "prompt_ids": self.prompt_ids,
            "option_ids": self.option_ids,
            "answers": self.answers,
        }
        Path(path).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Choices:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds no choices, or they do not match their fingerprint.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text
            raise ValueError(f"{path} holds no saved choices: {error}") from error
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        if found != _FORMAT:
            raise ValueError(f"{path} holds no saved choices: its format reads {found!r}")
        choices = cls(content["prompt_ids"], content["option_ids"], content["answers"])
        if choices.fingerprint != content["fingerprint"]:
            raise ValueError(
                f"{path} holds rows of fingerprint {choices.fingerprint}, but says {content['fingerprint']}: it was"
                " changed after it was saved; build the choices again"
            )
        return choices


def _check_row(index: int, prompt: list[int], options: list[list[int]], answer: int) -> None:
    if not prompt:
        raise ValueError(f"prompt {index} has no tokens, so nothing predicts its options: put BOS there at least")
    if len(options) < 2:
        raise ValueError(f"row {index} has {len(options)} option(s): give at least two")
    if not all(options):
        raise ValueError(f"row {index} has an option without tokens: leave the row out")
    if not 0 <= answer < len(options):
        raise ValueError(f"row {index} has the answer {answer}: give one of its options, 0 to {len(options) - 1}")
    if options.count(options[answer]) > 1:
        raise ValueError(f"row {index} has its answer twice among the options: give it once")
    smallest = min(min(tokens) for tokens in (prompt, *options))
    if smallest < 0:
        raise ValueError(f"row {index} holds token id {smallest}: ids are counted from 0")


def _cut(prompt: list[int], most: int, begin: int | None) -> list[int]:
    keeps_begin = begin is not None and prompt[0] == begin
    if most < 1 + keeps_begin:
        raise ValueError(f"max_length leaves {max(most, 0)} token(s) for a prompt: give a larger one")
    if len(prompt) <= most:
        return prompt
    return [prompt[0], *prompt[len(prompt) - most + 1 :]] if keeps_begin else prompt[-most:]
