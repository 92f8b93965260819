"""The ∞-gram index against brute force, and the API's client against a server that answers as the API does."""

from __future__ import annotations

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from ngram_reference import infinigram, occurrences

from geomcallbacks.behaviour import InfiniGramAPI, InfiniGramIndex
from geomcallbacks.behaviour.infinigram.build import sort_suffixes

BIG = 70_000  # a vocabulary that needs four bytes a token


def documents(vocabulary=30, lengths=(300, 1, 200, 80), seed=0):
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, 31)
    return [(rng.choice(30, size=n, p=weight / weight.sum()) + vocabulary - 30).tolist() for n in lengths]


@pytest.fixture
def index_class():
    pytest.importorskip("infini_gram", reason="no wheel of infini-gram for this machine")
    return InfiniGramIndex


@pytest.mark.parametrize("vocab_size", [30, 65_535, 65_536, BIG])
def test_counts_and_probabilities_are_those_of_brute_force(index_class, tmp_path, vocab_size):
    text = documents(vocab_size)
    index = index_class.build(text, tmp_path, vocab_size=vocab_size)
    rng = np.random.default_rng(1)
    longest = []
    for _ in range(60):
        query = documents(vocab_size, (rng.integers(1, 5),), int(rng.integers(1000)))[0]
        assert index.count(query) == occurrences(text, query)
        prompt, answer = documents(vocab_size, (rng.integers(0, 9), 5), int(rng.integers(1000)))
        if rng.integers(2):  # a stretch of the text itself
            start = int(rng.integers(250))
            prompt = text[0][start : start + len(prompt)]
        found, lengths = index.probabilities(prompt, answer)
        contexts = [prompt + answer[:i] for i in range(5)]
        expected = [infinigram(text, context, token) for context, token in zip(contexts, answer, strict=True)]
        assert found == pytest.approx([p for p, _ in expected], abs=1e-15)
        assert lengths == [length for _, length in expected]
        longest += lengths
    assert min(longest) <= 1
    assert max(longest) >= 4
    assert index.tokens == index.count([]) == sum(map(len, text)) + len(text)


def test_no_ngram_reaches_over_two_documents(index_class, tmp_path):
    index = index_class.build([[1, 2], [3, 4]], tmp_path, vocab_size=5)
    assert [index.count(gram) for gram in ([1, 2], [2, 3], [3, 4], [2])] == [1, 0, 1, 1]
    joined = index_class.build([1, 2, 3, 4], tmp_path, vocab_size=5)
    assert joined.count([2, 3]) == 1
    # 2 follows every known end of "3 1" in one of one; 4 follows none of it.
    assert joined.probabilities([3, 1], [2, 4]) == ([1.0, 0.0], [1, 2])
    with pytest.raises(ValueError, match="vocab_size=5"):
        joined.probabilities([5], [1])


@pytest.mark.parametrize("name", ["a folder; with $(odd) name", "stable/tokenized/offset", "metadata metaoff unigram"])
def test_any_folder_serves_and_is_written_over(index_class, tmp_path, capfd, name):
    """The engine looks for the names of its files in the whole path: "stable" holds "table"."""
    folder = tmp_path / name
    for seed in (0, 1):
        index = index_class.build(text := documents(seed=seed), folder, vocab_size=30)
        assert index.count(text[0][:3]) == occurrences(text, text[0][:3])
        assert index.fingerprint in index.source
    assert {file.name for file in folder.iterdir()} == {"tokenized.0", "offset.0", "table.0"}
    assert capfd.readouterr() == ("", "")


def test_a_table_that_counts_wrongly_is_caught(index_class, tmp_path, monkeypatch):
    """As the package's own builder leaves it where the parts of a text are shorter than their overlap."""

    def turned(program, folder, width):
        sort_suffixes(program, folder, width)
        np.fromfile(folder / "table.0", "<u2")[::-1].tofile(folder / "table.0")

    monkeypatch.setattr("geomcallbacks.behaviour.infinigram.index.sort_suffixes", turned)
    with pytest.raises(RuntimeError, match="times, and it stands in the text"):
        index_class.build(documents(), tmp_path, vocab_size=30)


def test_a_temporary_folder_that_cannot_do(index_class, tmp_path, monkeypatch):
    (tmp_path / "stable").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "stable"))
    with pytest.raises(ValueError, match="TMPDIR"):
        index_class.build(documents(), tmp_path / "index", vocab_size=30)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty"),
        ([1, 30], "vocab_size=30"),
        ([1, -1], "from -1"),
        (torch.zeros(3, 4, dtype=torch.int64), "flattened"),
    ],
)
def test_bad_ids(index_class, tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        index_class.build(ids, tmp_path, vocab_size=30)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "infini_gram", None)
    monkeypatch.setitem(sys.modules, "infini_gram.engine", None)
    with pytest.raises(ImportError, match=r"geomcallbacks\[memorisation\].*InfiniGramAPI"):
        InfiniGramIndex.build([1, 2], tmp_path, vocab_size=3)
    assert not list(tmp_path.iterdir())


class Handler(BaseHTTPRequestHandler):
    """Answers `infgram_prob` over `TEXT` as https://infini-gram.io/api_doc describes; `failures` come first."""

    TEXT = documents()

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(payload)
        assert payload["query_type"] == "infgram_prob"
        *context, token = payload["query_ids"]
        prob, suffix = infinigram(self.TEXT, context, token)
        answer = {"prompt_cnt": 1, "cont_cnt": 1, "prob": prob, "suffix_len": suffix, "latency": 0.1}
        status, answer = self.server.failures.pop(0) if self.server.failures else (200, answer)
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("geomcallbacks.behaviour.infinigram.api._WAITS", (0.001, 0.001))
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        running.failures, running.asked, running.url = [], [], f"http://127.0.0.1:{running.server_port}/"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_api_says_what_the_server_counts(server):
    engine = InfiniGramAPI("v4_piletrain_llama", url=server.url)
    prompt, answer = Handler.TEXT[0][40:45], [1, 2, 29]
    found, lengths = engine.probabilities(prompt, answer)
    expected = [infinigram(Handler.TEXT, prompt + answer[:i], token) for i, token in enumerate(answer)]
    assert list(zip(found, lengths, strict=True)) == expected
    assert {asked["index"] for asked in server.asked} == {"v4_piletrain_llama"}
    assert [asked["query_ids"] for asked in server.asked] == [prompt + answer[: i + 1] for i in range(3)]


def test_api_keeps_the_end_of_a_long_query(server):
    InfiniGramAPI(url=server.url).probabilities(range(600), [1])
    assert server.asked[0]["query_ids"] == [*range(101, 600), 1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_api_asks_again(server, status):
    server.failures = [(status, {"error": "busy"})] * 2
    found, _ = InfiniGramAPI(url=server.url).probabilities([], [1])
    assert len(server.asked) == 3
    assert found == [infinigram(Handler.TEXT, [], 1)[0]]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((400, {"error": "[index] is not one of ours"}), "refused .* not one of ours"),
        ((200, {"error": "out-of-range"}), "out-of-range"),
        ((200, {"count": 3}), "without 'prob'"),
        ((200, b"<html>moved</html>"), "did not answer in JSON"),
    ],
)
def test_api_refusals_are_not_repeated(server, failure, message):
    server.failures = [failure]
    with pytest.raises(ValueError, match=message):
        InfiniGramAPI(url=server.url).probabilities([1], [2])
    assert len(server.asked) == 1


def test_api_without_a_network(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(ConnectionError, match=r"in 3 attempts .* InfiniGramIndex\.build"):
        InfiniGramAPI(url=url).probabilities([1], [2])
    server.failures = [(500, {"error": "busy"})] * 9
    with pytest.raises(ConnectionError, match="in 3 attempts"):
        InfiniGramAPI(url=server.url).probabilities([1], [2])
    assert len(server.asked) == 3


def test_api_speaks_http_alone():
    with pytest.raises(ValueError, match="url='file:///etc'"):
        InfiniGramAPI(url="file:///etc")
