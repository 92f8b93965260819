"""A hub of tiny models: its cache as the hub's client lays it out, and a server that speaks as much of its protocol
as the client asks for."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import tiny
from transformers import PreTrainedModel


def model_files(seed: int, kind: str = "gpt_neox", tokenizer: bool = True) -> dict[str, bytes]:
    """The files of a tiny model's revision."""
    folder = Path(tempfile.mkdtemp())
    model: PreTrainedModel = tiny.model(kind, seed)
    model.save_pretrained(folder)
    if tokenizer:
        tiny.tokenizer().save_pretrained(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    return files


def commit_of(repo: str, revision: str) -> str:
    """Forty hexadecimal digits that name a revision's commit."""
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


def add_revision(cache: Path, repo: str, revision: str, files: Mapping[str, bytes]) -> Path:
    """Puts a revision into a cache: blobs by hash, a ref with the commit, a snapshot of links into the blobs."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = commit_of(repo, revision)
    snapshot = folder / "snapshots" / commit
    for name in ("blobs", "refs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    (folder / "refs" / revision).write_text(commit)
    return snapshot


Repos = Mapping[str, Mapping[str, Mapping[str, bytes]]]


@contextmanager
def serve(repos: Repos, on_get: Callable[[str], None] = lambda path: None) -> Iterator[str]:
    """A hub on this machine with repositories {name: {revision: {file: content}}}; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            on_get(self.path)
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if repo not in repos:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if parts[0] == "api":
                return self._api(repo, parts[4:])
            return self._file(repo, parts[3], "/".join(parts[4:]))

        def _api(self, repo: str, rest: list[str]) -> None:
            if rest == ["refs"]:
                refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit_of(repo, n)} for n in repos[repo]]
                return self._json({"branches": refs, "converts": [], "tags": []})
            revision = self._revision(repo, rest[1] if len(rest) > 1 else "main")
            if revision is None:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = repos[repo][revision]
            if rest[:1] == ["tree"]:
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in files.items()
                    ]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": repo, "sha": commit_of(repo, revision), "siblings": siblings})

        def _file(self, repo: str, wanted: str, name: str) -> None:
            revision = self._revision(repo, wanted)
            if revision is None or name not in repos[repo][revision]:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = repos[repo][revision][name]
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": commit_of(repo, revision),
                "Accept-Ranges": "bytes",
            }
            return self._send(200, content, headers)

        def _revision(self, repo: str, wanted: str) -> str | None:
            return next((name for name in repos[repo] if wanted in (name, commit_of(repo, name))), None)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
