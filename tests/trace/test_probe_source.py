"""What `--probe` names: files of all kinds, folders, the offline text; and what is no text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from text.tokens import train_tokenizer

from geomcallbacks.probing.offline import held_out_texts
from geomcallbacks.trace import ProbeSource
from geomcallbacks.trace.probe_source import labelled


def test_files_of_all_kinds_give_the_same_probe(
    source: ProbeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pd.DataFrame({"body": tiny.texts(100)}).to_parquet(tmp_path / "t.parquet")
    ours = source.build(tiny.tokenizer())
    assert (ours.input_ids_nt[0, 0], len(ours)) == (1, 80)  # BOS, as the tokenizer adds it
    ours.save(tmp_path / "p.safetensors")
    for name, column in (("t.parquet", "body"), ("texts", "text"), ("p.safetensors", "text")):
        other = dataclasses.replace(source, source=str(tmp_path / name), column=column)
        assert other.build(tiny.tokenizer()).fingerprint == ours.fingerprint, name
    (tmp_path / "t.txt").write_text("\n".join(tiny.texts(40)))
    assert len(ProbeSource(str(tmp_path / "t.txt"), rows=10, length=40).build(tiny.tokenizer())) == 10


def test_offline_text_is_the_default_probe() -> None:
    texts = held_out_texts()
    tokenizer = train_tokenizer(texts[:3], 300)
    probe = ProbeSource().build(tokenizer)
    assert (len(probe), int(probe.lengths_n.max())) == (1024, 128)
    whole = "\n".join(texts)
    for row, length in zip(probe.input_ids_nt[:20], probe.lengths_n[:20], strict=True):
        assert tokenizer.decode(row[:length]) in whole


def test_probes_have_labels() -> None:
    assert labelled(["a.txt"]) == {"probe": "a.txt"}
    assert labelled(["web=a.txt", "code=b=c.jsonl"]) == {"web": "a.txt", "code": "b=c.jsonl"}
    assert labelled(["x/a.txt", "org/name"]) == {"a": "x/a.txt", "name": "org/name"}
    with pytest.raises(ValueError, match="two of the label 'a'"):
        labelled(["x/a.txt", "y/a.txt"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "missing.jsonl"}, "--probe missing.jsonl: there is no such file"),
        ({"column": "body"}, r"line 1 has no column 'body' \(--probe-column\), but \['text'\]"),
        ({"rows": 101}, "--probe .* with --probe-rows 101: size=101, but only 100 of 100 texts"),
        ({"length": 16}, "max_length=16 makes no probe: give a whole number of at least 32"),
        ({"source": __file__}, "of no kind that is read: give one of .txt"),
        ({"source": "org/none"}, "no file here, and as a hub data set it cannot be read"),
    ],
)
def test_wrong_probes_are_refused_with_a_remedy(source: ProbeSource, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(source, **changed).build(tiny.tokenizer())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"text": "w1 w2"}\n{"text": 5}', r"line 2: column 'text' \(--probe-column\) holds a int, not a"),
        ("t.jsonl", b'{"text": "w1"}\n{torn', "line 2 is no JSON"),
        ("t.parquet", pd.DataFrame({"text": [1, 2]}).to_parquet(), r"row 1: column 'text' .* holds a int"),
    ],
)
def test_a_row_that_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ProbeSource(str(tmp_path / name), rows=80, length=40).build(tiny.tokenizer())
