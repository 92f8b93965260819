"""YAML files of settings that hold anything: settings as the command line would read them, or one line of error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hostile import no_hang, survive
from training.arguments import RecipeParser
from training.stage_settings import StageSettings

SIZES = pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault


def bomb(depth: int = 9) -> str:
    """Aliases of aliases: nine to the ninth values in a line."""
    levels = "".join(f"&a{k + 1} [{', '.join([f'*a{k}'] * 9)}], " for k in range(depth))
    return f"model: [&a0 [x, x], {levels}]"


REFUSED = {
    "a list": "[1]", "a word": "word", "a number": "0", "false": "false", "misspelt": "threds: 1",
    "unknown": "foo: 1",
    "fraction": "threads: 1.5", "truth": "threads: true", "exponent": "threads: 1e3", "hex": "threads: 0x10",
    "base 60": "threads: 1:30", "infinite": "threads: .inf", "null": "probe_rows: null", "no truth": "overwrite: 2",
    "list for one": "model: [a]", "mapping for one": "model: {a: 1}", "set": "model: !!set {a}",
    "binary": "model: !!binary aGk=", "key twice": "threads: 1\nthreads: 2", "tab": "model:\tx\n\ty",
    "NUL": 'model: "\0"',
    "call": 'model: !!python/object/apply:os.system ["touch hacked"]', "name": "model: !!python/name:os.system",
    "module": "model: !!python/module:os", "new": "model: !!python/object/new:os.system [true]",
    "tag": "model: !mine x",
    "two documents": "model: x\n---\nmodel: y", "list key": "? [a]\n: b", "number key": "1: x", "null key": "~: x",
    "digits": "threads: " + "9" * 5000, "own list": "model: &a [*a]", "own mapping": "model: &a {x: *a}",
    "unclosed": "model: [", "deep": "[" * 5000, "deep mapping": "model: " + "{a: " * 2000 + "}" * 2000,
    "bomb": bomb(),
    "merged bomb": "<<: " + bomb().removeprefix("model: "), "undefined alias": "model: *a",
    "another config": "config: x",
}  # fmt: skip


def parse(tmp_path: Path, content: str | bytes) -> StageSettings:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return RecipeParser(StageSettings, prog="recipe").parse(["--config", str(file)])  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [*REFUSED, "latin-1", "UTF-16"])
def test_what_is_refused(
    tally: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    other = {"latin-1": b"model: \xe9", "UTF-16": "model: x".encode("utf-16")}
    with no_hang(), pytest.raises(SystemExit) as ended:
        parse(tmp_path, other.get(kind) or REFUSED[kind])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("recipe: error: ")
    assert len(said) < 6000
    assert not (tmp_path / "hacked").exists()
    tally("hostile configuration")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("", "threads", None), ("null", "threads", None), ("threads: 3", "threads", 3), ('threads: "3"', "threads",
        3),
        ("threads: 010", "threads", 10), ("threads: null", "threads", None), ("overwrite: yes", "overwrite", True),
        ("model_revision: 1.10", "model_revision", "1.10"), ("model_revision: 0123", "model_revision", "0123"),
        ("model_revision: 2020-01-01", "model_revision", "2020-01-01"), ("model_revision: no", "model_revision",
        "no"),
        ("model: &a x\nbase: *a", "base", "x"), ("<<: {threads: 2}", "threads", 2), ("model: '%s %(prog)s'",
        "model", "%s %(prog)s"),
        (b"\xef\xbb\xbfthreads: 3", "threads", 3), ("threads: 3\r\nlora_rank: 2\r\n", "lora_rank", 2),
    ],
)  # fmt: skip
def test_what_is_read(tally: Callable[..., None], tmp_path: Path, text: str, name: str, value: object) -> None:
    assert getattr(parse(tmp_path, text), name) == value
    tally("hostile configuration")


VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.sampled_from(
        [
            "true",
            "no",
            "~",
            "",
            "1_0",
            "[1]",
            "{a: 1}",
            "&a x",
            "*a",
            "!!int 3",
            "!!str 3",
            "!x",
            "- a",
            "'",
            "|",
            ">",
            "%",
        ]
    ),
)
SETTINGS = {field.name: field.default for field in fields(StageSettings)}


@SIZES
def test_settings(tally: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    def check(drawn: dict[str, str]) -> None:
        text = "\n".join(f"{name}: {value}" for name, value in drawn.items())
        try:
            found = parse(tmp_path, text)
        except SystemExit as ended:
            status, said = ended.code, capsys.readouterr().err
        else:
            status, said = 0, ""
        if status != 0:
            assert status == 2
            assert said.startswith("recipe: error: ")
            return
        plain = all(re.fullmatch(r"[a-z0-9.-]*[a-z0-9]", value) for value in drawn.values())
        for name, value in vars(found).items():
            default = SETTINGS[name]
            assert name in drawn or value == default
            if isinstance(default, bool | int | float):
                assert type(value) is type(default)
            # A plain word or number is what is written, where no other value may run into its line.
            if plain and name in drawn and drawn[name] != "null":
                wanted = drawn[name] if isinstance(value, str) else int(drawn[name]) if type(value) is int else value
                assert value == wanted

    names = st.sampled_from([*SETTINGS, "threds"])
    survive(tally, "hostile configuration", st.dictionaries(names, VALUES, max_size=3), check, count)
