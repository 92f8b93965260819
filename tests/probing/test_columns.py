"""Columns of data sets: only what is taken is read, what holds no text is counted, what is no column is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
import torch
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
    load_from_disk,
)

from geomcallbacks import ProbeSet
from geomcallbacks.probing import columns

SETTINGS = {"size": 20, "max_length": 20, "min_length": 8}


def probe_of(dataset: Any, **changes: Any) -> ProbeSet:
    return ProbeSet.from_dataset(dataset, tiny.tokenizer(), **(SETTINGS | changes))


# --- what is read ---------------------------------------------------------------------------------------------------


def counted(texts: list[str]) -> tuple[Dataset, list[int]]:
    """A data set that notes the numbers of the rows that are read of it."""
    read: list[int] = []
    dataset = Dataset.from_dict({"text": texts, "number": list(range(len(texts)))})

    def note(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        read.extend(batch["number"])
        return batch

    dataset.set_transform(note)
    return dataset, read


def test_only_the_rows_that_are_taken_are_read() -> None:
    texts = ["w1 w2", *tiny.texts(400)] * 3
    dataset, read = counted(texts)
    probe = probe_of(dataset)
    assert probe.fingerprint == ProbeSet.from_texts(texts, tiny.tokenizer(), **SETTINGS).fingerprint
    assert len(read) == 20 + probe.dropped < 30


def test_a_split_reads_the_column_once() -> None:
    texts = tiny.texts(2500)
    dataset, read = counted(texts)
    train, probe = ProbeSet.split(dataset, tiny.tokenizer(), **SETTINGS)
    assert len(train) == 2480
    assert len(read) <= 2500 + 2 * 20 + probe.dropped
    assert set(read) == set(range(2500))


def test_a_split_of_mapped_files_finds_every_equal_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In shards, behind rows in memory, in another order: against plain Python."""
    monkeypatch.setattr(columns, "_MAPPED", 1)
    monkeypatch.setattr(columns, "_BATCH", 7)
    distinct = tiny.texts(60)
    Dataset.from_dict({"text": distinct * 3, "id": range(180)}).save_to_disk(tmp_path / "data", num_shards=3)
    mapped = load_from_disk(tmp_path / "data")
    held = concatenate_datasets([Dataset.from_dict({"text": distinct[:9], "id": range(180, 189)}), mapped])
    for dataset in (mapped, held, held.shuffle(seed=3), mapped.select(range(20, 150)), held.sort("id").skip(5)):
        assert dataset.cache_files
        train, probe = ProbeSet.split(dataset, tiny.tokenizer(), **SETTINGS)
        texts, own = list(dataset["text"]), tiny.tokenizer()
        rows = {tuple(row[:length].tolist()) for row, length in zip(probe.input_ids_nt, probe.lengths_n, strict=True)}
        ids = [tuple(own(text)["input_ids"][:20]) for text in texts]
        wanted = [number for number, row in zip(dataset["id"], ids, strict=True) if row not in rows]
        assert list(train["id"]) == wanted
        assert len(wanted) < len(texts) - 20


MEMORY = """
import sys, tiny
from datasets import load_from_disk
from geomcallbacks import ProbeSet
from geomcallbacks.probing import columns

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

columns._MAPPED = 1 << 23
dataset, call = load_from_disk(sys.argv[1]), getattr(ProbeSet, sys.argv[2])
settings = dict(size=8, max_length=20, min_length=8)
call(dataset.select(range(100)), tiny.tokenizer(), **settings)
before = peak()
call(dataset, tiny.tokenizer(), **settings)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("call", ["from_dataset", "split"])
def test_a_file_larger_than_memory_could_be_probed(tmp_path: Path, call: str) -> None:
    """96 MiB of text in a mapped file: its pages count as memory of the process for as long as they are mapped."""
    texts = [f"w{i % 100} w{i // 100 % 100} " + f"w{i % 90} " * 1000 for i in range(25_000)]
    Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "data")
    size = sum(file.stat().st_size for file in (tmp_path / "data").glob("*.arrow")) / 2**20
    words = [sys.executable, "-c", MEMORY, str(tmp_path / "data"), call]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(tiny.__file__).parent)
    assert done.returncode == 0, done.stderr
    assert size > 90
    assert float(done.stdout.split()[-1]) < 0.4 * size


# --- tables of other kinds ------------------------------------------------------------------------------------------


def test_tables_of_all_kinds_give_the_rows_of_a_list() -> None:
    texts = tiny.texts(60)
    labels = np.random.default_rng(0).permutation(60)
    tables = {
        "dict": {"text": texts},
        "data set": Dataset.from_dict({"text": texts}),
        "data set in another order": Dataset.from_dict({"text": texts[::-1]}).select(range(59, -1, -1)),
        "pandas": pd.DataFrame({"text": texts}, index=labels),
        "pandas of Arrow": pd.DataFrame({"text": texts}, index=labels).astype("string[pyarrow]"),
        "Arrow": pa.table({"text": texts}),
        "NumPy": np.array([(text,) for text in texts], dtype=[("text", "U400")]),
    }
    wanted = ProbeSet.from_texts(texts, tiny.tokenizer(), **SETTINGS).fingerprint
    assert {name: probe_of(table).fingerprint for name, table in tables.items()} == dict.fromkeys(tables, wanted)


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("columns", [None, ["number"]], ids=["all columns", "without the text"])
def test_the_format_of_a_data_set_is_for_training_alone(kind: str | None, columns: list[str] | None) -> None:
    texts = tiny.texts(60)
    dataset = Dataset.from_dict({"text": texts, "number": range(60)}).with_format(kind, columns=columns)
    wanted = ProbeSet.from_texts(texts, tiny.tokenizer(), **SETTINGS).fingerprint
    assert probe_of(dataset).fingerprint == wanted
    train, probe = ProbeSet.split(dataset, tiny.tokenizer(), **SETTINGS)
    assert (probe.fingerprint, len(train), train.format) == (wanted, 40, dataset.format)


@pytest.mark.parametrize(
    "nothing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, pa.scalar(None, pa.string()), "", " "], ids=repr
)
def test_what_holds_no_text_is_passed_over_and_counted(nothing: Any) -> None:
    texts = tiny.texts(20)
    probe = ProbeSet.from_texts(iter([texts[0], nothing, *texts[1:], nothing]), tiny.tokenizer(), **SETTINGS)
    assert probe.fingerprint == ProbeSet.from_texts(iter(texts), tiny.tokenizer(), **SETTINGS).fingerprint
    assert probe.dropped == 1
    assert "20 rows of 20..20 tokens, dropped=1, fingerprint" in repr(probe)


def test_holes_in_a_column_stay_in_the_training_text() -> None:
    texts: list[str | None] = [*tiny.texts(40), None, ""]
    train, probe = ProbeSet.split(Dataset.from_dict({"text": texts}), tiny.tokenizer(), **SETTINGS)
    assert (len(train), len(probe)) == (22, 20)
    frame = pd.DataFrame({"text": [np.nan, *tiny.texts(20)]})
    assert (len(probe_of(frame)), probe_of(frame).dropped) == (20, 1)
    with pytest.raises(ValueError, match=r"only 20 of 21 texts have min_length=8 tokens \(None or NaN: 1\)"):
        probe_of(frame, size=21)


# --- refusals -------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """A data set of PyTorch's kind: by number, without columns."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": tiny.texts(40)[index]}


def stream(*rows: Any) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


WHOLE = Dataset.from_dict({"text": tiny.texts(40)})
CHAT = [{"role": "user", "content": text} for text in tiny.texts(40)]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (DatasetDict(train=WHOLE, test=WHOLE), ValueError, r"splits, train, test: give one.*dataset\['train'\]"),
        (IterableDatasetDict(dev=stream({"text": "w1"})), ValueError, r"splits, dev: give one.*dataset\['dev'\]"),
        (stream({"body": "w1", "id": 3}), ValueError, r"text_column='text' is not in row 0 of the stream.*body, id"),
        (iter([{"text": "w1"}, {"body": "w2"}]), ValueError, "text_column='text' is not in row 1 of the stream"),
        (iter(tiny.texts(40)), TypeError, "row 0 of the stream is a str without columns: give it to .*from_texts"),
        ({"body": tiny.texts(40)}, ValueError, "text_column='text' is not in the data set: it has body"),
        (pd.DataFrame({"body": tiny.texts(40)}), ValueError, "text_column='text' is not in the data set: it has body"),
        (tiny.texts(40), TypeError, "dataset is a list without columns: give its texts to ProbeSet.from_texts"),
        (set(tiny.texts(40)), TypeError, "dataset is a set without columns"),
        (Rows(), TypeError, "dataset is a Rows without columns: give its texts to ProbeSet.from_texts"),
        (Dataset.from_dict({"text": [[row] for row in CHAT]}), TypeError, r"is a list.*apply_chat_template\(messages"),
        (Dataset.from_dict({"text": CHAT}), TypeError, r"is a dict.*apply_chat_template\(messages"),
        (Dataset.from_dict({"text": [[5, 6, 7]] * 40}), TypeError, "is a list.*token ids go into .*from_token_ids"),
        (Dataset.from_dict({"text": [b"w1 w2"] * 40}), TypeError, "is a bytes, not a string: decode the column first"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_column_of_texts(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probe_of(dataset)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_texts_without_an_order_are_refused(kind: Any) -> None:
    """Strings hash differently in each process, so that two ranks would hold different probes."""
    with pytest.raises(TypeError, match=rf"texts is a {kind.__name__}, whose order differs .* give a list, sorted"):
        ProbeSet.from_texts(kind(tiny.texts(40)), tiny.tokenizer(), **SETTINGS)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (pd.DataFrame({"text": tiny.texts(40)}), "dataset is a DataFrame: give a list .* or a datasets.Dataset"),
        (pa.table({"text": tiny.texts(40)}), "dataset is a Table: give a list of texts or a datasets.Dataset"),
        (set(tiny.texts(40)), "dataset is a set without columns"),
    ],
)
def test_tables_that_cannot_be_split(dataset: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ProbeSet.split(dataset, tiny.tokenizer(), **SETTINGS)
