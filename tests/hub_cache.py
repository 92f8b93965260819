"""A hub of tiny models: its cache as the hub's client lays it out, and a client that fetches into it."""

from __future__ import annotations

import fnmatch
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny


def save_model(folder: Path, seed: int = 0) -> Path:
    """Save a tiny model with its tokenizer; its folder."""
    tiny.model(seed=seed).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def model_files(seed: int) -> dict[str, bytes]:
    """The files of a tiny model's revision."""
    with tempfile.TemporaryDirectory() as folder:
        return {file.name: file.read_bytes() for file in save_model(Path(folder), seed).iterdir()}


def commit_of(repo: str, revision: str) -> str:
    """Forty hexadecimal digits that name a revision's commit."""
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


def snapshots(cache: Path, repo: str) -> Path:
    """The folder with a folder for each commit of a repository."""
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots"


def add_revision(cache: Path, repo: str, revision: str, files: Mapping[str, bytes]) -> Path:
    """Put a revision into a cache: blobs by hash, a ref with the commit, a snapshot of links into the blobs."""
    commit = commit_of(repo, revision)
    snapshot = snapshots(cache, repo) / commit
    for name in ("blobs", "refs"):
        (snapshot.parent.parent / name).mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = snapshot.parent.parent / "blobs" / hashlib.sha256(content).hexdigest()
        if not blob.exists():  # shared by revisions: another thread may be reading it
            blob.write_bytes(content)
        if not (snapshot / name).exists():
            (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    (snapshot.parent.parent / "refs" / revision).write_text(commit)
    return snapshot


def serve(monkeypatch: pytest.MonkeyPatch, repo: str, revisions: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """Let the hub's client list and fetch these revisions of a repository; gives the list of files as they go."""
    fetched: list[str] = []

    def refs(_: object, model: str) -> SimpleNamespace:
        if model != repo:
            response = SimpleNamespace(headers={}, request=None)
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=response)  # type: ignore[arg-type]
        return SimpleNamespace(branches=[SimpleNamespace(name=name) for name in revisions], tags=[])

    def download(
        model: str, *, revision: str, cache_dir: Path, allow_patterns: Sequence[str], ignore_patterns: Sequence[str]
    ) -> str:
        names = [n for n in revisions[revision] if any(fnmatch.fnmatch(n, pattern) for pattern in allow_patterns)]
        fetched.extend(names)
        return str(add_revision(cache_dir, model, revision, {name: revisions[revision][name] for name in names}))

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", refs)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched
