"""The text that the recipes train on: Python's own standard library offline, or any data set.

Nothing here touches the network unless ``dataset_corpus`` is given the name of a hub data set.

Documents are split before anything is cut from them: ``geomcallbacks.probing.offline`` says how.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from geomcallbacks.probing.offline import OTHER_DOMAIN, PARTS, Document, near_duplicates, part_of, python_documents
from text.arithmetic import arithmetic_texts

LOCAL_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text", ".csv": "csv"}


@dataclass(frozen=True)
class Corpus:
    """Documents by part, and a manifest that says exactly which they are.

    Attributes:
        parts: Part name (see ``PARTS``) -> its documents.
        source: Where they come from and with which settings; JSON values only.
    """

    parts: dict[str, list[Document]]
    source: dict[str, Any]

    def texts(self, part: str) -> list[str]:
        """Return the texts of one part.

        Raises:
            ValueError: There is no such part, or it is empty.
        """
        if not self.parts.get(part):
            counts = {name: len(documents) for name, documents in self.parts.items()}
            raise ValueError(
                f"part={part!r} of the corpus holds no documents (documents by part: {counts}). Documents "
                f"are split whole, so give more of them: a folder of files, or one JSONL or Parquet row each."
            )
        return [document.text for document in self.parts[part]]

    @property
    def manifest(self) -> dict[str, Any]:
        """The source, the SHA-256 of every document by part, and one fingerprint of it all."""
        files = {
            part: {document.path: _sha256(document.text) for document in documents}
            for part, documents in self.parts.items()
        }
        content = {"source": self.source, "files": files}
        return {"fingerprint": _sha256(json.dumps(content, sort_keys=True)), **content}

    def save(self, folder: str | Path) -> None:
        """Write ``manifest.json`` and the texts (``corpus.parquet``: part, path, text), for later stages."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"part": part, **vars(document)} for part, documents in self.parts.items() for document in documents]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "corpus.parquet", compression="zstd")
        (folder / "manifest.json").write_text(json.dumps(self.manifest, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Corpus:
        """Read what ``save`` wrote.

        Raises:
            ValueError: The texts are not those of the manifest.
        """
        folder = Path(folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        parts: dict[str, list[Document]] = {part: [] for part in manifest["files"]}
        for row in pyarrow.parquet.read_table(folder / "corpus.parquet").to_pylist():
            parts[row["part"]].append(Document(row["path"], row["text"]))
        corpus = cls(parts, manifest["source"])
        found = corpus.manifest["fingerprint"]
        if found != manifest["fingerprint"]:
            raise ValueError(
                f"folder={str(folder)!r}: corpus.parquet has the fingerprint {found[:12]}, manifest.json has "
                f"{manifest['fingerprint'][:12]}. One of them was changed; copy both from the base run again."
            )
        return corpus


def offline_corpus(root: str | Path | None = None, arithmetic_share: float = 0.03, arithmetic_seed: int = 0) -> Corpus:
    """Build the offline corpus: the standard library of the running Python, and some arithmetic.

    The library comes without its tests and without site-packages, about 12 MB. It differs between Python
    versions, so the version and a hash of every file are in the manifest.

    Args:
        root: The folder of ``*.py`` files to read instead of the standard library.
        arithmetic_share: Arithmetic as a share of the characters of the pretraining part, in [0, 1).
        arithmetic_seed: Seed of the arithmetic. It is part of the corpus, not of a training run.

    Raises:
        ValueError: There are no files below ``root``, or the share is out of range.
    """
    if not 0 <= arithmetic_share < 1:
        raise ValueError(f"arithmetic_share={arithmetic_share} is not a share; give a number in [0, 1)")
    documents = python_documents(root)
    source = {
        "name": "python-stdlib" if root is None else "python-files",
        "python": platform.python_version(),
        "arithmetic_share": arithmetic_share,
        "arithmetic_seed": arithmetic_seed,
    }
    corpus = split_corpus(documents, source, OTHER_DOMAIN if root is None else frozenset())
    size = sum(len(document.text) for document in corpus.parts["pretrain"])
    wanted = int(size * arithmetic_share / (1 - arithmetic_share))
    corpus.parts["pretrain"].extend(
        Document(f"arithmetic/{index:06d}", text)
        for index, text in enumerate(arithmetic_texts(wanted, arithmetic_seed))
    )
    return corpus


def dataset_corpus(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    text_column: str = "text",
    max_documents: int | None = None,
    streaming: bool = False,
) -> Corpus:
    """Build a corpus from a hub data set, or from local files in the same format.

    Local files (JSONL, JSON, Parquet, CSV: one row a document; TXT: one file a document) go through the same
    ``datasets.load_dataset`` as a hub name and need no network. Everything is held in memory.

    Args:
        name: A hub name, a file, or a folder of files.
        config: The configuration of a hub data set.
        revision: The revision of a hub data set; give one to be able to repeat a run.
        split: The split to read. Its rows are split again into ``PARTS``, by the hash of their text.
        text_column: The column that holds the text.
        max_documents: Read at most so many rows, from the start.
        streaming: Read a hub data set row by row, without a download of the whole. Needs ``max_documents``.

    Raises:
        ValueError: No such column, no text, or streaming without an end.
    """
    if streaming and max_documents is None:
        raise ValueError("streaming=True reads without end: give max_documents as well")
    rows = open_dataset(name, config, revision, split, streaming)
    columns = rows.column_names
    if columns is not None and text_column not in columns:
        raise ValueError(f"text_column={text_column!r} is not a column of {name!r}; it has {sorted(columns)}")
    texts = (row[text_column] for row in itertools.islice(rows, max_documents))
    # A row has no name: with its own hash in place of one, equal texts always fall into the same part.
    documents = (Document(_sha256(text)[:32], text) for text in texts if text)
    shown = Path(name).name if Path(name).exists() else name
    source = {"name": shown, "config": config, "revision": revision, "split": split}
    return split_corpus(documents, {**source, "text_column": text_column, "max_documents": max_documents})


def open_dataset(
    name: str, config: str | None = None, revision: str | None = None, split: str = "train", streaming: bool = False
) -> Any:
    """Open a hub data set or local files with ``datasets.load_dataset``. See ``dataset_corpus`` for the arguments."""
    import datasets

    path, options = _load_arguments(name)
    # Only what was given: the builders of local files take neither a configuration nor a revision.
    options |= {key: value for key, value in (("name", config), ("revision", revision)) if value is not None}
    return datasets.load_dataset(path, split=split, streaming=streaming, **options)


def _load_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """Turn a name into what ``load_dataset`` takes: its path and further options."""
    path = Path(name)
    if name.startswith("hf://") and path.suffix in LOCAL_BUILDERS:  # files of a hub repository, by a pattern
        return LOCAL_BUILDERS[path.suffix], {"data_files": name}
    if not path.exists():
        if path.suffix in LOCAL_BUILDERS or name.startswith((".", "/", "~")):
            raise ValueError(f"dataset={name!r} looks like a local file or folder but does not exist; check the path")
        return name, {}
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in LOCAL_BUILDERS)
    kinds = {LOCAL_BUILDERS.get(file.suffix, file.suffix) for file in files}
    if len(kinds) != 1 or not kinds <= set(LOCAL_BUILDERS.values()):
        raise ValueError(
            f"dataset={name!r} holds files of the kinds {sorted(kinds)}; give files of one kind, with one of "
            f"the endings {sorted(LOCAL_BUILDERS)}"
        )
    options: dict[str, Any] = {"data_files": [str(file) for file in files]}
    if kinds == {"text"}:
        options["sample_by"] = "document"
    return kinds.pop(), options


def split_corpus(
    documents: Iterable[Document], source: dict[str, Any], other_domain: frozenset[str] = frozenset()
) -> Corpus:
    """Drop near-duplicates, then deal whole documents to ``PARTS`` by the hash of their names.

    Args:
        documents: The documents.
        source: Where they come from, for the manifest.
        other_domain: First components of the paths that make up ``ood_test``. Where there are none, ``ood_test`` is
            dealt by the hash as the other parts are, and its text is of the same domain as theirs.
    """
    parts: dict[str, list[Document]] = {part: [] for part in PARTS}
    dropped = []
    for document, duplicate in near_duplicates(documents):
        if duplicate:
            dropped.append(document.path)
        elif document.text.strip():
            parts[part_of(document.path, other_domain)].append(document)
    return Corpus(parts, {**source, "near_duplicates_dropped": dropped})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
