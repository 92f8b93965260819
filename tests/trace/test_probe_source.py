"""What `--probe` names: files of all kinds, folders, the offline text; and what is no text."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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
        ("t.parquet", pd.DataFrame({"text": [b"w1"]}).to_parquet(), r"row 1: .* holds a bytes, not a string: decode"),
        ("t.jsonl", b'{"text": [{"role": "user"}]}', r"line 1: .* holds a list, .*: render messages first, with tok"),
    ],
)
def test_a_row_that_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ProbeSource(str(tmp_path / name), rows=80, length=40).build(tiny.tokenizer())


MEMORY = """
import sys, tiny
from geomcallbacks.trace import ProbeSource

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

build = lambda name: ProbeSource(name, rows=8, length=40).build(tiny.tokenizer())
build(sys.argv[1])
before = peak()
build(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_large_file_is_read_only_where_it_is_taken(tmp_path: Path, suffix: str) -> None:
    """Of 60 MB in one row group, as pandas writes it."""

    def write(name: str, count: int) -> Path:
        texts, file = [f"w{i % 100} " * 3 + "w1 w2 w3 " * 700 for i in range(count)], tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            pd.DataFrame({"text": texts}).to_parquet(file, compression=None, use_dictionary=False)
        elif suffix == ".jsonl":
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            file.write_text("\n".join(texts))
        return file

    small, large = write("small", 20), write("large", 10_000)
    assert large.stat().st_size > 60e6
    words = [sys.executable, "-c", MEMORY, str(small), str(large)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(tiny.__file__).parent)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.4 * large.stat().st_size / 2**20


def test_rows_without_text_are_counted(source: ProbeSource, tmp_path: Path) -> None:
    texts = [None, *tiny.texts(100)[:3], float("nan"), *tiny.texts(100)[3:]]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    probe = dataclasses.replace(source, source=str(tmp_path / "t.jsonl")).build(tiny.tokenizer())
    assert (probe.fingerprint, probe.dropped) == (source.build(tiny.tokenizer()).fingerprint, 2)


@pytest.mark.parametrize(
    "kind", ["dictionary", "large_string", "string_view", "zstd", "dotted"], ids=lambda kind: f"kind={kind}"
)
def test_parquet_as_others_write_it(source: ProbeSource, tmp_path: Path, kind: str) -> None:
    """As pandas, Polars and Hugging Face do."""
    texts, column = pa.array(tiny.texts(100)), "a.b" if kind == "dotted" else "text"
    types = {"large_string": pa.large_string(), "string_view": pa.string_view()}
    values = texts.dictionary_encode() if kind == "dictionary" else texts.cast(types.get(kind, pa.string()))
    pq.write_table(pa.table({column: values}), tmp_path / "t.parquet", compression="zstd" if kind == "zstd" else "none")
    other = dataclasses.replace(source, source=str(tmp_path / "t.parquet"), column=column)
    assert other.build(tiny.tokenizer()).fingerprint == source.build(tiny.tokenizer()).fingerprint
