"""Probes, files of text, spectra and curves of hostile values: right, without value, or refused by name."""

from __future__ import annotations

import io
import json
import math
import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from hostile import no_hang, refused, survive
from safetensors.torch import save

from geomcallbacks import ProbeSet, find_phases, metrics
from geomcallbacks.trace import ProbeSource

SIZES = pytest.mark.parametrize("count", [300, pytest.param(8_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault
THINGS: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 9), st.floats(), st.text(max_size=2),
    st.sampled_from([np.int64(3), np.float64(11.5), 2**31, 10**40, math.inf, 1 + 2j, torch.tensor(3), 5e-324]),
)  # fmt: skip


# --- probes and files of text -------------------------------------------------------------------------------------


def check_probe(drawn: tuple[list[Any], int]) -> None:
    """As lists, and where they are token ids as a tensor with the padding on either side."""
    rows, before = drawn
    sound = all(isinstance(row, list) and len(row) > 1 for row in rows) and len(rows) > 0
    sound = sound and all(isinstance(x, int | np.int64 | torch.Tensor) and 0 <= x < 2**31 for row in rows for x in row)
    try:
        probe = ProbeSet.from_token_ids(rows)
    except ValueError as error:
        assert not sound
        refused(error, "row", "token", "probe is empty")
        return
    assert sound
    ids = torch.tensor([[-1] * before + [int(x) for x in row] + [-1] * (9 - len(row)) for row in rows])
    for made in (probe, ProbeSet.from_token_ids(ids, ids >= 0)):
        assert [made.input_ids_nt[i, :n].tolist() for i, n in enumerate(made.lengths_n.tolist())] == rows


@SIZES
def test_token_rows(count: int) -> None:
    rows = st.lists(st.lists(st.integers(0, 9) | THINGS, max_size=4) | THINGS, max_size=4)
    survive(st.tuples(rows, st.integers(0, 3)), check_probe, count)


def parquet(texts: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


LINE = json.dumps({"text": "w1 w2 w3"}).encode() + b"\n"
WHOLE = {".jsonl": LINE * 5, ".txt": b"w1 w2 w3\n" * 20, ".parquet": parquet(["w1 w2 w3", None] * 20)}


def build(file: Path) -> ProbeSet:
    return ProbeSource(str(file), rows=1, length=8, min_length=2).build(tiny.tokenizer())


@SIZES
def test_damaged_files(tmp_path: Path, count: int) -> None:
    tiny.probe().save(tmp_path / "whole.safetensors")
    whole = WHOLE | {".safetensors": (tmp_path / "whole.safetensors").read_bytes()}

    def check(drawn: tuple[int, str]) -> None:
        seed, suffix = drawn
        draw, content, file = random.Random(seed), bytearray(whole[suffix]), tmp_path / f"x{suffix}"
        for _ in range(draw.randrange(4)):
            at = draw.randrange(1 + (len(content) if draw.random() < 0.5 else min(200, len(content))))
            put = [b"", b"\0", b"\xff", b'"', b"\\", b"\n", b"\xf0\x9f", b"{", bytes(9), draw.randbytes(1)]
            content[at : at + draw.choice([0, 1, 2, 300])] = draw.choice(put)
        file.write_bytes(content)
        try:
            probe = build(file)
        except ValueError as error:
            refused(error, str(file))
        else:
            saved = suffix == ".safetensors"
            assert probe.fingerprint == tiny.probe().fingerprint if saved else 2 <= probe.lengths_n.min() <= 8

    survive(st.tuples(st.integers(0, 2**32), st.sampled_from([*whole])), check, count // 2)


def saved(ids: Any, lengths: Any) -> bytes:
    metadata = {"format": "geomcallbacks.probe.v1", "fingerprint": "x", "dropped": "0"}
    return save({"input_ids": torch.tensor(ids), "lengths": torch.tensor(lengths)}, metadata)


REFUSED = {
    ".jsonl": [
        b"", b"\0", b"[1]\n", b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}\n", b'{"text": "w1 \\ud800 w2"}\n',
        b'{"body": "x"}\n', b'{"text": NaN}\n', LINE.decode().encode("utf-16"),
    ],
    ".txt": [b"", b"\xff" + LINE, b"\n" * 10_000],
    ".parquet": [
        b"PAR1", LINE, WHOLE[".parquet"][:-5], parquet(pa.array([1])), parquet([["w1"]]), parquet(pa.nulls(2)),
        parquet(pa.array([b"w1 \xff\xfe w2"]).view(pa.string())),
    ],
    ".safetensors": [
        saved([1, 2], [2]), saved([[1, 2]], [2, 2]), saved([[1, 2]], [2**60]), saved([[1, 2]], [[2]]),
        saved([[1.5, 2]], [2]), saved([[1, 2]], [2.5]), saved([[1, 2]], [-1]), saved([[2**40, 1]], [2]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("suffix", REFUSED)
def test_files_that_hold_no_probe_are_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    for content in REFUSED[suffix]:
        file.write_bytes(content)
        with (
            no_hang(),
            pytest.raises(ValueError, match=r"x\.\w+ (with --probe-rows 1: .+|is not a saved probe|was changed)"),
        ):
            build(file)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WHOLE)
def test_a_text_of_100_megabytes(tmp_path: Path, suffix: str) -> None:
    """A tokenizer takes minutes for it; only its beginning is wanted."""
    text, file = "w1 " * 34_000_000, tmp_path / f"x{suffix}"
    content = {".jsonl": lambda: json.dumps({"text": text}).encode(), ".parquet": lambda: parquet([text])}
    file.write_bytes(content.get(suffix, text.encode)())
    with no_hang(60):
        assert build(file).input_ids_nt.tolist() == [[1] + [5] * 7]


# --- spectra and curves --------------------------------------------------------------------------------------------


def check_spectrum(drawn: tuple[list[float], float]) -> None:
    """In exact fractions, which neither overflow nor round."""
    values = [value * drawn[1] for value in drawn[0]]
    top = max(values)
    found = {
        "rankme": metrics.rankme(values),
        "garrido": metrics.rankme_garrido(values),
        "ratio": metrics.participation_ratio(values),
        "stable": metrics.stable_rank(values),
        "top1": metrics.top_share(values, 1),
    }
    if not all(map(math.isfinite, values)) or min(values) < -top * (len(values) * 2.0**-52) or top <= 0:
        assert all(map(math.isnan, found.values()))
        return
    fractions = [Fraction(max(value, 0.0)) for value in values]
    shares = [fraction / sum(fractions) for fraction in fractions]
    rank = math.exp(-sum(float(share) * math.log(share) for share in shares if share > 1e-300))
    ratio, stable = float(1 / sum(share * share for share in shares)), float(1 / max(shares))
    wanted = {"rankme": rank, "garrido": rank, "ratio": ratio, "stable": stable, "top1": float(max(shares))}
    assert found == pytest.approx(wanted, rel=1e-9)


@SIZES
def test_spectra(count: int) -> None:
    numbers = (
        st.floats() | st.floats(0, 1e3) | st.sampled_from([0.0, -0.0, 5e-324, 1e-200, 1e300, 1.7e308, 1.0, -1e-17])
    )
    drawn = st.tuples(st.lists(numbers, min_size=1, max_size=12), st.sampled_from([1.0, 1e300, 1e-300]))
    survive(drawn, check_spectrum, count)


def check_arguments(drawn: tuple[Any, Any]) -> None:
    for name, call in {
        "spectrum": lambda: metrics.rankme(drawn[0]),
        "alpha_window": lambda: metrics.check_window(drawn),
        "top": lambda: metrics.rankme([4.0, 2.0, 1.0], 0.0, drawn[0]),
        "k=": lambda: metrics.top_share([4.0, 2.0, 1.0], drawn[0]),
        "eps": lambda: metrics.rankme([4.0, 2.0, 1.0], drawn[0]),
    }.items():
        try:
            value = call()
        except ValueError as error:
            refused(error, name)
        else:
            assert value == drawn if name == "alpha_window" else name == "spectrum" or math.isfinite(value)


@SIZES
def test_arguments(count: int) -> None:
    drawn = st.tuples(THINGS | st.lists(THINGS, max_size=4), THINGS)
    survive(drawn, check_arguments, count)


def check_curve(curve: list[tuple[Any, Any, Any]]) -> None:
    steps, rankme, alpha = ([point[part] for point in curve] for part in range(3))
    try:
        phases = find_phases(steps, rankme, alpha)
    except ValueError as error:
        refused(error, "steps hold", "RankMe is a positive")
        bad_step = any(not 0 <= step < 1.79e308 or 0 < step < 1e-300 for step in steps)
        assert bad_step or any(value is not None and value <= 0 for value in rankme)
        return
    known = {step: value for step, value in zip(steps, rankme, strict=True) if value and abs(value) < math.inf}
    for phase in phases:
        assert phase.start < phase.end
        assert (known[phase.start], known[phase.end]) == (phase.rankme_start, phase.rankme_end)
    assert all(before.end == after.start for before, after in pairwise(phases))
    assert not phases or len(known) >= 6


@SIZES
def test_curves(count: int) -> None:
    steps = st.integers(0, 5000) | st.sampled_from([0, 0.5, 1e300, 5e-324, -1, math.nan, math.inf, 10**400])
    rankme = st.floats(0.01, 1e4) | st.sampled_from([None, 3.0, math.nan, math.inf, 1e308, 5e-324, 0, -1])
    alpha = st.floats(-5, 5) | st.sampled_from([None, math.nan, math.inf, 1e308, -1e308, 0.0])
    survive(st.lists(st.tuples(steps, rankme, alpha), max_size=30), check_curve, count // 3)
