"""Tokenizers that users give, and the tokens of a text that are its own: BOS once, and no mark of an end."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.behaviour import Completions

WORDS = [f"w{i}" for i in range(90)]
MARKS = ["<pad>", "<s>", "</s>", "<unk>", "[SEP]", "<|im_start|>", "<|im_end|>", "<|end|>", "[gMASK]", "<end_of_turn>"]
TOKENS = [*MARKS, "\n", "user", "assistant", *WORDS]
IDS = {token: number for number, token in enumerate(TOKENS)}
SETTINGS = {"size": 40, "max_length": 24, "min_length": 4}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(shape: str = "$A", special: bool = True, **settings: Any) -> PreTrainedTokenizerFast:
    """Words, line ends and marks, each a token; `shape` says what is put around a text."""
    raw = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(" +"), "removed")]
    )
    raw.add_special_tokens(MARKS[:5])
    raw.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in MARKS[5:]])
    around = [(mark, IDS[mark]) for mark in MARKS if mark in shape]
    raw.post_processor = processors.TemplateProcessing(single=shape, special_tokens=around)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **(names | settings))


def texts(count: int = 60, words: int = 12, seed: int = 0) -> list[str]:
    """Words drawn at random, of which no two end a text alike more often than by chance."""
    drawn = torch.randint(0, 90, (count, words), generator=torch.Generator().manual_seed(seed)).tolist()
    return [" ".join(WORDS[i] for i in row) for row in drawn]


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split(" ")]


def rows_of(probe: ProbeSet) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(probe.input_ids_nt, probe.lengths_n.tolist(), strict=True)]


def quietly(*arguments: Any, **settings: Any) -> ProbeSet:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ProbeSet.from_texts(*arguments, **(SETTINGS | settings))


# --- the end of a text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    ["</s>", " </s>", "</s></s>", "</s>\n", "<|im_end|>\n", "<|im_end|>", "<|end|>\n</s>", "<|end|>\n\n</s>\n",
     "<end_of_turn>\n", "<|im_end|>\n<|im_start|>", "[SEP]", "<pad><pad>"],
)  # fmt: skip
def test_marks_of_an_end_are_no_content(end: str) -> None:
    probe = quietly(iter([text + end for text in texts()]), tokenizer())
    assert rows_of(probe) == [ids(text) for text in texts()[:40]]


@pytest.mark.parametrize("end", ["\n", "\n\n", "\nw1\n", "<unk>", " what"])
def test_content_at_an_end_is_kept(end: str) -> None:
    """A file of code ends in a line end, and a word may be unknown: nobody's markup."""
    every_third = [text + end if i % 3 == 0 else text for i, text in enumerate(texts())]
    plain = tokenizer()(every_third[:40])["input_ids"]
    assert rows_of(quietly(iter(every_third), tokenizer())) == plain
    assert all(len(row) > 12 for row in plain[::3])


def test_rows_of_rendered_chat_end_in_their_content() -> None:
    own = tokenizer(chat_template=CHATML)
    talks = [[{"role": "user", "content": "w1 w2 w3"}, {"role": "assistant", "content": text}] for text in texts()]
    rendered = [own.apply_chat_template(talk, tokenize=False) for talk in talks]
    assert all(text.endswith("<|im_end|>\n") for text in rendered)
    rows = rows_of(quietly(iter(rendered), own, max_length=64))
    assert [row[-12:] for row in rows] == [ids(text) for text in texts()[:40]]


def test_rank_of_chats_is_that_of_their_content() -> None:
    """Of one turn each, with a template that only ends it: the very rows, so the very number."""
    plain, many = texts(400), {"size": 200, "max_length": 24}
    model = tiny.model("llama")
    ranks = []
    for closing in ("", "<|im_end|>\n"):
        probe = quietly(iter([text + closing for text in plain]), tokenizer(), **many)
        ranks.append(GeometryMonitor(probe, alpha_window=tiny.WINDOW).measure(model, 0)[0].metrics["rankme"])
    assert ranks[0] == ranks[1] > 10


def test_what_closes_every_chat_and_is_no_mark_is_told() -> None:
    """A generation prompt; and the marks of a template that the tokenizer does not know, so that they are words."""
    own = tokenizer(chat_template=CHATML)
    turns = [[{"role": "user", "content": text}] for text in texts()]
    prompts = [own.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    strange = [f"{text} </answer>" for text in texts()]
    for rendered, shown in ((prompts, r"'\\n'"), (strange, "'<unk>'")):
        with pytest.warns(UserWarning, match=rf"40 of the probe's 40 different rows end in token \d+ \({shown}\)"):
            ProbeSet.from_texts(rendered, own, **(SETTINGS | {"max_length": 64}))


@pytest.mark.parametrize("special", [True, False], ids=["special", "added"])
def test_marks_of_a_template_need_not_be_special(special: bool) -> None:
    own = tokenizer(special=special, chat_template=CHATML)
    assert (IDS["<|im_end|>"] in own.all_special_ids) <= special
    rows = rows_of(quietly(iter([text + "<|im_end|>\n" for text in texts()]), own))
    assert rows == [ids(text) for text in texts()[:40]]


def test_what_an_encoder_puts_behind_short_rows_goes() -> None:
    """Long rows are cut before [SEP], so that it stood on short ones only."""
    own = tokenizer("<s> $A [SEP]", cls_token="<s>", sep_token="[SEP]", eos_token=None)
    both = [text if i % 2 else f"{text} {text}" for i, text in enumerate(texts())]
    assert rows_of(quietly(iter(both), own)) == [[IDS["<s>"], *ids(text)][:24] for text in both[:40]]


def test_marks_within_a_text_stay() -> None:
    within = [f"{text}<|im_end|>\n{text}" for text in texts()]
    rows = rows_of(quietly(iter(within), tokenizer(), max_length=40))
    assert rows == [[*ids(text), IDS["<|im_end|>"], IDS["\n"], *ids(text)] for text in texts()[:40]]


# --- its beginning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front", ["<s>", "[gMASK]<s>"])
@pytest.mark.parametrize("max_length", [8, 24])
def test_a_front_that_text_and_tokenizer_both_have_stands_once(front: str, max_length: int) -> None:
    own, size = tokenizer(" ".join([*front.replace(">", "> ").replace("]", "] ").split(), "$A"])), max_length
    wanted = quietly(iter(texts()), own, max_length=size)
    with pytest.warns(UserWarning, match="40 of 40 texts begin with the BOS that the tokenizer adds.*: one is kept"):
        probe = ProbeSet.from_texts(iter([front + text for text in texts()]), own, **(SETTINGS | {"max_length": size}))
    assert probe.fingerprint == wanted.fingerprint
    assert int(probe.lengths_n.max()) == min(size, 12 + own("w1")["input_ids"].index(IDS["w1"]))


def test_repeated_words_are_no_second_front() -> None:
    twice = [" ".join([word, word, *text.split(" ")]) for word, text in zip(WORDS, texts(), strict=False)]
    for shape, front in (("$A", []), ("<s> $A", [IDS["<s>"]])):
        assert rows_of(quietly(iter(twice), tokenizer(shape))) == [[*front, *ids(text)] for text in twice[:40]]
    own = ["<s><s>" + text for text in texts()]  # of a tokenizer that adds none: the text's own business
    assert rows_of(quietly(iter(own), tokenizer())) == [[1, 1, *ids(text)] for text in texts()[:40]]


def test_prompts_of_completions_have_one_front_and_keep_their_end() -> None:
    """A generation prompt at the end of a prompt is what the completion answers to."""
    prompts = ["<s><|im_start|>user\nw1<|im_end|>\n<|im_start|>assistant\n", "<s>w2", "w3"]
    made = Completions.from_texts(prompts, ["w4"] * 3, tokenizer("<s> $A"), max_length=20)
    start, end, line = IDS["<|im_start|>"], IDS["<|im_end|>"], IDS["\n"]
    chat = [1, start, IDS["user"], line, IDS["w1"], end, line, start, IDS["assistant"], line]
    assert made.prompt_ids == [chat, [1, IDS["w2"]], [1, IDS["w3"]]]


# --- what is no tokenizer -------------------------------------------------------------------------------------------


class Processor:
    """Of images and texts, as vision-language models have them: images come first."""

    def __init__(self) -> None:
        self.tokenizer, self.image_processor = tokenizer("<s> $A"), object()

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        raise ValueError("Incorrect image source")


class Batched:
    """Gives a batch for a single text."""

    def __call__(self, text: Any, **settings: Any) -> Any:
        return {"input_ids": [[1, 2, 3]]}


class Words:
    """Gives tokens and no ids."""

    def __call__(self, text: Any, **settings: Any) -> Any:
        return {"input_ids": text.split()}


class Piece:
    """As SentencePiece and tiktoken: encodes, and cannot be called."""

    def encode(self, text: str) -> list[int]:
        return [1, 2, 3]


WRONG = [
    (None, "tokenizer is a NoneType: give a Transformers tokenizer"),
    ("gpt2", r"tokenizer='gpt2' is a str: give AutoTokenizer.from_pretrained\('gpt2'\)"),
    (tokenizer().backend_tokenizer, r"is a tokenizers.Tokenizer: wrap it, PreTrainedTokenizerFast\(tokenizer_object="),
    (Piece(), "tokenizer is a .*Piece: give a Transformers tokenizer.*ProbeSet.from_token_ids"),
    (Batched(), "tokenizer is a Batched, which gives no list of token ids for a text"),
    (Words(), "tokenizer is a Words, which gives no list of token ids for a text"),
    (lambda text: {"input_ids": [1] * 40}, "tokenizer is a function, which gives no list of token ids.*truncation"),
    (lambda text, **_: [1] * 40, "tokenizer is a function, which gives no list of token ids for a text"),
    (lambda text, **_: {"input_ids": None}, "tokenizer is a function, which gives no list of token ids for a text"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=lambda value: type(value).__name__)
def test_a_wrong_tokenizer_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ProbeSet.from_texts(texts(), wrong, **SETTINGS)
    with pytest.raises(TypeError, match=message.replace("truncation", "argument")):
        Completions.from_texts(["w1", "w2"], ["w2", "w3"], wrong, max_length=8, append_eos=False)


def test_a_processor_lends_its_tokenizer() -> None:
    wanted = quietly(texts(), tokenizer("<s> $A"))
    assert quietly(texts(), Processor()).fingerprint == wanted.fingerprint
    made = Completions.from_texts(["w1"], ["w2"], Processor(), max_length=8)
    assert (made.prompt_ids, made.completion_ids) == ([[1, IDS["w1"]]], [[IDS["w2"], IDS["</s>"]]])
