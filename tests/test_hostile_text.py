"""Probes of hostile tokens, texts and files: the rows that are there, or an error that says what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from hostile import no_hang, refused, survive
from safetensors.torch import save

from geomcallbacks import ProbeSet
from geomcallbacks.probing.offline import cut_texts
from geomcallbacks.trace import ProbeSource
from geomcallbacks.trace.rows import jsonl_rows

SIZES = pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault
GOOD = "w1 w2 w3"
FORMAT = {"format": "geomcallbacks.probe.v1", "fingerprint": "x", "dropped": "0"}

TOKENS: Any = st.one_of(
    st.integers(0, 9), st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=2), st.just(2**31)
)
ROWS = st.lists(st.lists(st.integers(0, 9) | TOKENS, max_size=4) | TOKENS, max_size=4)


def check_token_lists(rows: Any) -> None:
    try:
        probe = ProbeSet.from_token_ids(rows)
    except ValueError as error:
        refused(error, "row", "token", "probe is empty")
        return
    whole = [probe.input_ids_nt[i, :n].tolist() for i, n in enumerate(probe.lengths_n.tolist())]
    assert whole == rows
    assert all(type(token) in (int, bool) and 0 <= token < 2**31 for row in rows for token in row)


def check_masked(drawn: tuple[int, int, int, float]) -> None:
    seed, n, t, share = drawn
    draw = random.Random(seed)
    ids = torch.tensor([[draw.randrange(-1, 9) for _ in range(t)] for _ in range(n)]).reshape(n, t)
    mask = torch.tensor([[float(draw.random() < share) for _ in range(t)] for _ in range(n)]).reshape(n, t)
    kept = [[int(x) for x, real in zip(*row, strict=True) if real] for row in zip(ids, mask, strict=True)]
    text = ["".join("1" if real else "0" for real in row).strip("0") for row in mask.tolist()]
    sound = n > 0 and all(len(row) > 1 and min(row) >= 0 for row in kept) and not any("0" in row for row in text)
    try:
        probe = ProbeSet.from_token_ids(ids, mask)
    except ValueError as error:
        assert not sound
        refused(error, "row", "token", "probe is empty")
    else:
        assert sound
        assert [probe.input_ids_nt[i, :m].tolist() for i, m in enumerate(probe.lengths_n.tolist())] == kept


@SIZES
def test_token_rows(tally: Callable[..., None], count: int) -> None:
    survive(tally, "hostile probe", ROWS, check_token_lists, count)
    size = st.integers(0, 4)
    drawn = st.tuples(st.integers(0, 10**6), size, st.integers(0, 6), st.floats(0, 1))
    survive(tally, "hostile probe", drawn, check_masked, count)


@SIZES
def test_saved_probes(tally: Callable[..., None], tmp_path: Path, count: int) -> None:
    file = tmp_path / "p.safetensors"
    tiny.probe().save(file)
    whole = file.read_bytes()

    def check(seed: int) -> None:
        draw = random.Random(seed)
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(max(1, len(content) if draw.random() < 0.5 else 200))
            way = draw.randrange(3)
            if way == 0:
                content[at : at + 1] = bytes([draw.randrange(256)])
            elif way == 1:
                del content[at : at + draw.randrange(300)]
            else:
                content[at:at] = bytes(draw.randrange(9))
        file.write_bytes(content)
        try:
            probe = ProbeSet.load(file)
        except ValueError as error:
            refused(error, str(file))
        else:
            assert probe.fingerprint == tiny.probe().fingerprint

    survive(tally, "hostile probe", st.integers(0, 2**32), check, count // 3)


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [
        ([1, 2], [2]), ([[1, 2]], [2, 2]), ([[1, 2]], [9]), ([[1, 2]], [2**60]), ([[1, 2]], [[2]]), ([[1.5, 2]], [2]),
        ([[1, 2]], [2.5]), ([[1, 2]], [-1]), ([[2**40, 1]], [2]),
    ],
)  # fmt: skip
def test_saved_rows_that_do_not_fit(tally: Callable[..., None], tmp_path: Path, ids: Any, lengths: Any) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(save({"input_ids": torch.tensor(ids), "lengths": torch.tensor(lengths)}, FORMAT))
    with pytest.raises(ValueError, match=r"p\.safetensors is not a saved probe"):
        ProbeSet.load(file)
    tally("hostile probe")


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        (GOOD, {}), ({"text": [GOOD]}, {}), (b"w1", {}), ([GOOD.encode()], {}), ([None], {}), (["w1 \ud800 w2"], {}),
        ([GOOD], {"size": 1.5}), ([GOOD], {"size": "1"}), ([GOOD], {"max_length": 8.5}), ([GOOD],
        {"max_length": 2**70}),
    ],
)  # fmt: skip
def test_texts_that_are_none(tally: Callable[..., None], texts: Any, settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"texts? |size=|max_length="):
        ProbeSet.from_texts(texts, tiny.tokenizer(), **{"size": 1, "max_length": 8, "min_length": 2} | settings)
    tally("hostile text")


def build(file: Path, **settings: Any) -> ProbeSet:
    return ProbeSource(str(file), rows=1, length=8, min_length=2, **settings).build(tiny.tokenizer())


def parquet(column: pa.Array, name: str = "text") -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({name: column}), sink)
    return sink.getvalue()


LINE = json.dumps({"text": GOOD}).encode() + b"\n"
REFUSED = {
    ".jsonl": [
        b"", b"\0", b"\xff\xfe\n", b'{"text": "w1 \xe9"}\n', b'{"text": 5}\n', b'{"text": {"a": 1}}\n', b"[1]\n",
        b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}\n", b'{"text": "w1 \\ud800 w2"}\n', b'{"body": "x"}\n',
        b'{"text": NaN}\n', b'{"text": null}\n', gzip.compress(LINE), LINE.decode().encode("utf-16"),
    ],
    ".txt": [b"", b"\xff" + LINE, gzip.compress(LINE * 9), LINE.decode().encode("utf-16"), b"\n" * 10_000, b"\0"],
    ".parquet": [
        b"", b"PAR1", LINE, gzip.compress(parquet(pa.array([GOOD]))), parquet(pa.array([GOOD]))[:-5],
        parquet(pa.array([None], pa.null())), parquet(pa.array([1])), parquet(pa.array([b"w1 \xff"])),
        parquet(pa.array([{"a": GOOD}])), parquet(pa.array([[GOOD]])), parquet(pa.array([], pa.string())),
        parquet(pa.array([GOOD]), "body"), parquet(pa.array([b"w1 \xff\xfe w2"]).view(pa.string())),
    ],
}  # fmt: skip


@pytest.mark.parametrize("suffix", REFUSED)
def test_files_that_hold_no_text_are_named(tally: Callable[..., None], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    for content in REFUSED[suffix]:
        file.write_bytes(content)
        with no_hang(), pytest.raises(ValueError, match=r"--probe .*x\.\w+ with --probe-rows 1: .+"):
            build(file)
        tally("hostile text")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_files_that_hold_it(tally: Callable[..., None], tmp_path: Path, mark: bytes) -> None:
    wanted = ProbeSet.from_texts([GOOD], tiny.tokenizer(), size=1, max_length=8, min_length=2).fingerprint
    for suffix, content in (
        (".jsonl", mark + LINE), (".jsonl", mark + LINE.replace(b"\n", b"\r\n")), (".txt", mark + GOOD.encode() * 4),
        (".parquet", parquet(pa.array([None, GOOD, None]))), (".parquet", parquet(pa.array([GOOD],
        pa.large_string()))),
    ):  # fmt: skip
        file = tmp_path / f"x{suffix}"
        file.write_bytes(content)
        if suffix == ".txt":
            assert build(file).input_ids_nt.tolist() == [[1, 5, 6, 3, 6, 3, 6, 3]]
        else:
            assert build(file).fingerprint == wanted
        tally("hostile text")


@SIZES
def test_damaged_files(tally: Callable[..., None], tmp_path: Path, count: int) -> None:
    whole = {
        ".jsonl": LINE * 5, ".txt": (GOOD + "\n").encode() * 20, ".parquet": parquet(pa.array([GOOD, None] * 20)),
    }  # fmt: skip

    def check(drawn: tuple[int, str]) -> None:
        seed, suffix = drawn
        draw = random.Random(seed)
        content = bytearray(whole[suffix])
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(content))
            content[at : at + draw.randrange(3)] = draw.choice(
                [b"", b"\0", b"\xff", b'"', b"\\", b"\n", b"\xf0\x9f", b"{"]
            )
        file = tmp_path / f"x{suffix}"
        file.write_bytes(content)
        try:
            probe = build(file)
        except ValueError as error:
            refused(error, str(file))
        else:
            assert 2 <= int(probe.lengths_n.min()) <= 8
            if suffix == ".jsonl":
                texts = [json.loads(line)["text"] for line in content.decode().split("\n")[:1] if line.strip()]
                wanted = tiny.tokenizer()(texts[0])["input_ids"][:8] if texts and texts[0] else None
                assert wanted is None or len(wanted) < 3 or probe.input_ids_nt[0].tolist() == wanted

    names = st.sampled_from(list(whole))
    survive(tally, "hostile text", st.tuples(st.integers(0, 2**32), names), check, count // 2)


@SIZES
def test_lines_are_cut_as_python_cuts_them(tally: Callable[..., None], count: int) -> None:
    def check(drawn: tuple[str, int]) -> None:
        text, characters = drawn
        pieces, piece = [], ""
        for line in text.splitlines(keepends=True):
            piece += line
            if len(piece) >= characters:
                pieces.append(piece)
                piece = ""
        assert cut_texts([text], characters) == pieces

    survive(
        tally,
        "hostile text",
        st.tuples(st.text("ab\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"), st.integers(1, 9)),
        check,
        count,
    )


@SIZES
def test_rows_of_json_lines(tally: Callable[..., None], tmp_path: Path, count: int) -> None:
    file = tmp_path / "x.jsonl"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        try:
            rows = list(jsonl_rows(file))
        except ValueError as error:
            refused(error)
        else:
            lines = io.StringIO(content.decode("utf-8-sig"), newline=None)
            wanted = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
            assert repr(rows) == repr(wanted)

    pieces = st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b":", b"1", b"e9", b"NaN", b"\n", b"\r", b" ", b"\xff", b"\\u", b"\0"]
    )
    survive(tally, "hostile text", st.lists(pieces, max_size=8).map(b"".join), check, count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".jsonl", ".txt", ".parquet", "number"])
def test_a_line_of_100_megabytes(tally: Callable[..., None], tmp_path: Path, kind: str) -> None:
    """A tokenizer takes minutes for it; only its beginning is wanted."""
    text = "w1 " * 34_000_000
    content = {
        ".jsonl": lambda: json.dumps({"text": text}).encode(),
        ".txt": text.encode,
        ".parquet": lambda: parquet(pa.array([text])),
        "number": lambda: b"9" * 10**8,
    }[kind]()
    file = tmp_path / f"x{'.jsonl' if kind == 'number' else kind}"
    file.write_bytes(content)
    with no_hang(60):
        if kind == "number":
            with pytest.raises(ValueError, match="line 1 is no JSON"):
                build(file)
        else:
            short = ProbeSet.from_texts(["w1 " * 9], tiny.tokenizer(), size=1, max_length=8, min_length=2)
            assert build(file).fingerprint == short.fingerprint
    tally("hostile text")
