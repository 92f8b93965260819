"""The corpus of the recipes: split by document, no near-duplicates, the same from files, folders and columns."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from text.corpus import Corpus, dataset_corpus, offline_corpus, open_dataset, split_corpus
from text.data import describe_rows, write_rows
from text.tokens import packed_rows, probe_rows, train_tokenizer

from geomcallbacks.probing.offline import PARTS, Document, near_duplicates, part_of


def make_text(seed: int, lines: int = 40) -> str:
    rng = random.Random(seed)
    return "\n".join(f"value_{rng.randrange(10**6)} = call({rng.randrange(10**6)})" for _ in range(lines))


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    """Two hundred files, one near-duplicate of the first, one test and one installed package."""
    folder = tmp_path / "library"
    (folder / "package" / "test").mkdir(parents=True)
    (folder / "site-packages").mkdir()
    for index in range(200):
        (folder / "package" / f"file_{index:03d}.py").write_text(make_text(index))
    (folder / "package" / "copied.py").write_text("# another header\n" + make_text(0))
    (folder / "package" / "test" / "test_it.py").write_text(make_text(1000))
    (folder / "site-packages" / "other.py").write_text(make_text(1001))
    (folder / "package" / "empty.py").write_text("\n")
    return folder


def texts_of(corpus: Corpus) -> list[str]:
    return sorted(document.text for documents in corpus.parts.values() for document in documents)


def test_files_are_split_once_and_completely(source_folder: Path) -> None:
    corpus = offline_corpus(source_folder, arithmetic_share=0)
    found = sorted(document.path for documents in corpus.parts.values() for document in documents)
    # copied.py comes before file_000.py in the order of the listing, so the latter is the duplicate.
    assert corpus.source["near_duplicates_dropped"] == ["package/file_000.py"]
    assert found == ["package/copied.py", *(f"package/file_{index:03d}.py" for index in range(1, 200))]
    for part, share in PARTS.items():
        assert len(corpus.parts[part]) == pytest.approx(200 * share, abs=4 * (200 * share) ** 0.5), part


def test_split_depends_on_the_name_alone() -> None:
    documents = [Document(f"d{index}", make_text(index)) for index in range(100)]
    whole, half = split_corpus(documents, {}), split_corpus(reversed(documents[:50]), {})
    for part in PARTS:
        assert {d.path for d in half.parts[part]} == {d.path for d in whole.parts[part] if int(d.path[1:]) < 50}
    # Pinned: a change of the hash would give later stages another split than the base run had.
    found = [part_of(f"module_{index}.py") for index in range(6)]
    assert found == ["sft", "pretrain", "pretrain", "pretrain", "id_test", "pretrain"]


def test_near_duplicates_need_most_of_their_lines_seen() -> None:
    first, half_new = make_text(1), make_text(1).split("\n")[:15] + make_text(2).split("\n")
    documents = [Document("a", first), Document("b", "\n".join(half_new)), Document("c", "  " + first + "\n\nend")]
    assert [duplicate for _, duplicate in near_duplicates(documents)] == [False, False, True]


def test_the_standard_library_without_its_tests_has_rows_for_every_stage() -> None:
    corpus = offline_corpus()
    paths = {part: {document.path for document in documents} for part, documents in corpus.parts.items()}
    every = set().union(*paths.values())
    assert "argparse.py" in every
    assert not [path for path in every if re.search(r"(^|/)(tests?|idle_test|site-packages)/", path)]
    assert sum(map(len, corpus.texts("pretrain"))) > 5_000_000
    # Graphical interfaces are out of distribution, and in no other part. Some distributions package all but turtle.py
    # apart.
    other = {path.split("/")[0] for path in paths.pop("ood_test")}
    assert {"turtle.py"} <= other <= {"tkinter", "idlelib", "turtledemo", "turtle.py"}
    assert not other & {path.split("/")[0] for part in paths.values() for path in part}
    assert all(len(write_rows(corpus.texts(part))) >= 100 for part in ("sft", "preference", "id_test"))
    assert len(describe_rows(corpus.texts("ood_test"))) >= 90


def test_a_corpus_survives_a_round_trip_and_a_changed_one_is_refused(source_folder: Path, tmp_path: Path) -> None:
    corpus = offline_corpus(source_folder)
    corpus.save(tmp_path)
    assert Corpus.load(tmp_path) == corpus
    assert corpus.manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert sum(len(part) for part in corpus.manifest["files"].values()) == len(texts_of(corpus))
    assert offline_corpus(source_folder, arithmetic_seed=1).manifest["fingerprint"] != corpus.manifest["fingerprint"]

    table = pd.read_parquet(tmp_path / "corpus.parquet")
    table.loc[3, "text"] += " "
    table.to_parquet(tmp_path / "corpus.parquet")
    with pytest.raises(ValueError, match="fingerprint"):
        Corpus.load(tmp_path)


def test_arithmetic_is_a_share_of_the_pretraining_text(source_folder: Path) -> None:
    corpus = offline_corpus(source_folder, arithmetic_share=0.1)
    sums = {part: [d for d in corpus.parts[part] if d.path.startswith("arithmetic/")] for part in PARTS}
    share = sum(len(d.text) for d in sums.pop("pretrain")) / sum(map(len, corpus.texts("pretrain")))
    assert share == pytest.approx(0.1, abs=0.02)
    assert not any(sums.values())


def test_jsonl_parquet_text_and_folders_give_the_same_corpus(tmp_path: Path) -> None:
    texts = [make_text(index) for index in range(60)]
    table = pd.DataFrame({"text": [*texts, texts[5], "", None], "other": 1})
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for folder in ("folder", "files"):
        (tmp_path / folder).mkdir()
    for start in range(0, 63, 10):
        table[start : start + 10].to_parquet(tmp_path / "folder" / f"part-{start:02d}.parquet")
    for index, text in enumerate(texts):
        (tmp_path / "files" / f"{index:02d}.txt").write_text(text)
    corpora = [dataset_corpus(str(tmp_path / name)) for name in ("a.jsonl", "folder", "files")]
    for corpus in corpora:
        assert texts_of(corpus) == sorted(texts)
        assert corpus.manifest["files"] == corpora[0].manifest["files"]
    streamed = dataset_corpus(str(tmp_path / "a.jsonl"), streaming=True, max_documents=20)
    assert texts_of(streamed) == sorted(texts[:20])


def test_hub_names_are_asked_for_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: what load_dataset would be given."""
    asked: list[Any] = []

    def load_dataset(*args: object, **options: object) -> datasets.IterableDataset:
        asked.append((args, options))
        return datasets.Dataset.from_dict({"content": [make_text(i) for i in range(5)]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    where = {"split": "validation", "streaming": True}
    corpus = dataset_corpus("owner/name", "en", "v1", text_column="content", max_documents=3, **where)
    assert len(texts_of(corpus)) == 3
    assert corpus.source["revision"] == "v1"
    files = "hf://datasets/someone/some@~parquet/part/sft/*.parquet"
    open_dataset(files)
    assert asked == [
        (("owner/name",), {"name": "en", "revision": "v1", **where}),
        (("parquet",), {"data_files": files, "split": "train", "streaming": False}),
    ]


def test_wrong_data_sets_are_refused_with_a_remedy(tmp_path: Path) -> None:
    pd.DataFrame({"content": ["x"]}).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    with pytest.raises(ValueError, match=r"text_column='text'.*content"):
        dataset_corpus(str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="does not exist"):
        dataset_corpus(str(tmp_path / "missing.jsonl"))
    with pytest.raises(ValueError, match="max_documents"):
        dataset_corpus(str(tmp_path / "a.jsonl"), streaming=True)
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(ValueError, match="files of one kind"):
        dataset_corpus(str(tmp_path))
    one = dataset_corpus(str(tmp_path / "a.jsonl"), text_column="content")
    empty = next(part for part in PARTS if not one.parts[part])
    with pytest.raises(ValueError, match=f"part='{empty}'.*give more"):
        one.texts(empty)


def test_rows_are_packed_with_eos_and_probe_rows_stay_inside_a_document() -> None:
    texts = [make_text(index, lines=10) for index in range(20)]
    tokenizer = train_tokenizer(texts, 300)
    assert 256 + 2 < len(tokenizer) <= 300  # digits never merge, so that these texts have few pairs
    assert tokenizer.decode(tokenizer("naïve → 3")["input_ids"]) == "naïve → 3"
    assert train_tokenizer(texts, 300).get_vocab() == tokenizer.get_vocab()

    rows = packed_rows(texts, tokenizer, 16)
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert rows.flatten().tolist() == stream[: len(stream) // 16 * 16]
    with pytest.raises(ValueError, match="less than one row"):
        packed_rows(texts[:1], tokenizer, 10_000)

    probe = probe_rows(texts, tokenizer, size=12, length=16, seed=3)
    assert probe.shape == (12, 16)
    assert tokenizer.eos_token_id not in probe
    assert all(any(tokenizer.decode(row) in text for text in texts) for row in probe)
    assert len({tuple(row.tolist()) for row in probe}) == 12
    assert probe.equal(probe_rows(texts, tokenizer, size=12, length=16, seed=3))
    with pytest.raises(ValueError, match=r"probe_rows=100000.*lower"):
        probe_rows(texts, tokenizer, size=100_000, length=16)
