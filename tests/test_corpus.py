"""The corpus of the recipes: split by document, no near-duplicates, the same from files, folders and columns."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from text.arithmetic import arithmetic_texts
from text.corpus import (
    PARTS,
    Corpus,
    Document,
    dataset_corpus,
    near_duplicates,
    offline_corpus,
    open_dataset,
    part_of,
    split_corpus,
)
from text.tokens import packed_rows, probe_rows, train_tokenizer


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


def names(corpus: Corpus) -> list[str]:
    return [document.path for documents in corpus.parts.values() for document in documents]


def test_files_are_split_once_and_completely(source_folder: Path) -> None:
    corpus = offline_corpus(source_folder, arithmetic_share=0)
    found = names(corpus)
    assert len(found) == len(set(found))
    # copied.py comes before file_000.py in the order of the listing, so the latter is the duplicate.
    assert corpus.source["near_duplicates_dropped"] == ["package/file_000.py"]
    expected = {f"package/file_{index:03d}.py" for index in range(1, 200)} | {"package/copied.py"}
    assert set(found) == expected
    for part, share in PARTS.items():
        assert len(corpus.parts[part]) == pytest.approx(200 * share, abs=4 * (200 * share) ** 0.5), part


def test_split_depends_on_the_name_alone() -> None:
    documents = [Document(f"d{index}", make_text(index)) for index in range(100)]
    whole = split_corpus(documents, {})
    reversed_half = split_corpus(reversed(documents[:50]), {})
    for part in PARTS:
        assert {d.path for d in reversed_half.parts[part]} == {
            d.path for d in whole.parts[part] if int(d.path[1:]) < 50
        }
    # Pinned: a change of the hash would give later stages another split than the base run had.
    found = [part_of(f"module_{index}.py") for index in range(6)]
    assert found == ["sft", "pretrain", "pretrain", "pretrain", "id_test", "pretrain"]


def test_graphical_interfaces_are_out_of_distribution_and_in_no_other_part() -> None:
    corpus = offline_corpus()
    packages = {part: {d.path.split("/")[0] for d in documents} for part, documents in corpus.parts.items()}
    # Some distributions package all but turtle.py apart.
    assert {"turtle.py"} <= packages["ood_test"] <= {"tkinter", "idlelib", "turtledemo", "turtle.py"}
    assert not packages["ood_test"] & set().union(*(found for part, found in packages.items() if part != "ood_test"))
    assert all(corpus.parts[part] for part in PARTS)
    # Without such packages the hash alone decides, and gives every part its share.
    assert {part_of(f"{i}.py") for i in range(300)} == set(PARTS)
    assert {part_of(f"{i}.py", frozenset({"x"})) for i in range(300)} == set(PARTS) - {"ood_test"}


def test_near_duplicates_need_most_of_their_lines_seen() -> None:
    first, half_new = make_text(1), make_text(1).split("\n")[:15] + make_text(2).split("\n")
    documents = [Document("a", first), Document("b", "\n".join(half_new)), Document("c", "  " + first + "\n\nend")]
    assert [duplicate for _, duplicate in near_duplicates(documents)] == [False, False, True]


def test_standard_library_is_read_without_its_tests() -> None:
    corpus = offline_corpus()
    found = set(names(corpus))
    assert "argparse.py" in found
    assert not [name for name in found if re.search(r"(^|/)(tests?|idle_test|site-packages)/", name)]
    assert sum(len(text) for text in corpus.texts("pretrain")) > 5_000_000
    assert corpus.manifest["source"]["python"].startswith("3.")


def test_manifest_names_every_text_and_survives_a_round_trip(source_folder: Path, tmp_path: Path) -> None:
    corpus = offline_corpus(source_folder)
    corpus.save(tmp_path / "run")
    loaded = Corpus.load(tmp_path / "run")
    assert loaded == corpus
    assert loaded.manifest == corpus.manifest == json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert sum(len(part) for part in corpus.manifest["files"].values()) == len(names(corpus))

    (source_folder / "package" / "file_007.py").write_text(make_text(7) + "\nchanged = 1")
    assert offline_corpus(source_folder).manifest["fingerprint"] != corpus.manifest["fingerprint"]
    assert offline_corpus(source_folder, arithmetic_seed=1).manifest["fingerprint"] != corpus.manifest["fingerprint"]


def test_a_changed_corpus_is_refused(source_folder: Path, tmp_path: Path) -> None:
    offline_corpus(source_folder).save(tmp_path)
    table = pd.read_parquet(tmp_path / "corpus.parquet")
    table.loc[3, "text"] += " "
    table.to_parquet(tmp_path / "corpus.parquet")
    with pytest.raises(ValueError, match="fingerprint"):
        Corpus.load(tmp_path)


def test_arithmetic_is_a_small_share_and_mostly_right(source_folder: Path) -> None:
    corpus = offline_corpus(source_folder, arithmetic_share=0.1)
    size = {
        kind: sum(len(d.text) for d in corpus.parts["pretrain"] if d.path.startswith("arithmetic/") == kind)
        for kind in (True, False)
    }
    assert size[True] / (size[True] + size[False]) == pytest.approx(0.1, abs=0.02)
    assert not [d for part in PARTS if part != "pretrain" for d in corpus.parts[part] if "arithmetic" in d.path]

    text = "\n".join(arithmetic_texts(300_000))
    problems = re.findall(r"Question: ([^\n]+)\n(.*?)Answer: (-?\d+)\n", text, flags=re.DOTALL)
    right = [eval(problem) == int(answer) for problem, _, answer in problems]
    assert len(problems) > 3000
    assert sum(right) / len(right) == pytest.approx(0.85, abs=0.02)
    beginnings = {"": 0, "Work": 0, "Firs": 0, ">>> ": 0}
    for _, working, _ in problems:
        beginnings[working[:4]] += 1
    assert min(beginnings.values()) > len(problems) / 5
    assert arithmetic_texts(1000, seed=1) == arithmetic_texts(1000, seed=1) != arithmetic_texts(1000, seed=2)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
def test_jsonl_parquet_csv_and_folders_give_the_same_corpus(tmp_path: Path) -> None:
    texts = [make_text(index) for index in range(60)]
    table = pd.DataFrame({"text": [*texts, texts[5], "", None], "other": 1})
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    for index in range(0, 63, 10):
        table[index : index + 10].to_parquet(tmp_path / "folder" / f"part-{index:02d}.parquet")
    (tmp_path / "files").mkdir()
    for index, text in enumerate(texts):
        (tmp_path / "files" / f"{index:02d}.txt").write_text(text)
    corpora = [dataset_corpus(str(tmp_path / name)) for name in ("a.jsonl", "a.parquet", "folder", "files")]
    for corpus in corpora:
        assert sorted(d.text for part in corpus.parts.values() for d in part) == sorted(texts)
        assert corpus.manifest["files"] == corpora[0].manifest["files"]
    streamed = dataset_corpus(str(tmp_path / "a.jsonl"), streaming=True, max_documents=20)
    assert sorted(d.text for part in streamed.parts.values() for d in part) == sorted(texts[:20])


def test_a_hub_name_is_asked_for_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*args: object, **options: object) -> datasets.IterableDataset:
        asked.append((args, options))
        rows = datasets.Dataset.from_list([{"content": make_text(index)} for index in range(5)])
        return rows.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = dataset_corpus(
        "owner/name", "en", "v1", split="validation", text_column="content", max_documents=3, streaming=True
    )
    assert asked == [(("owner/name",), {"split": "validation", "streaming": True, "name": "en", "revision": "v1"})]
    assert sum(len(documents) for documents in corpus.parts.values()) == 3
    assert corpus.source["revision"] == "v1"


@pytest.mark.usefixtures("offline")
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

    probe = probe_rows(texts, tokenizer, size=12, length=16, seed=3)
    assert probe.shape == (12, 16)
    assert tokenizer.eos_token_id not in probe
    assert all(any(tokenizer.decode(row) in text for text in texts) for row in probe)
    assert len({tuple(row.tolist()) for row in probe}) == 12
    assert probe.equal(probe_rows(texts, tokenizer, size=12, length=16, seed=3))
    with pytest.raises(ValueError, match=r"probe_rows=100000.*lower"):
        probe_rows(texts, tokenizer, size=100_000, length=16)
    with pytest.raises(ValueError, match="less than one row"):
        packed_rows(texts[:1], tokenizer, 10_000)


def test_files_of_a_hub_repository_are_named_by_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: what load_dataset would be given."""
    import datasets

    given: dict[str, object] = {}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: given.update(path=path, **options))
    name = "hf://datasets/someone/some@~parquet/part/sft/*.parquet"
    open_dataset(name)
    assert given == {"path": "parquet", "data_files": name, "split": "train", "streaming": False}
