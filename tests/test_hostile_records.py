"""Record files, spectra and losses that were changed by anything: read rightly, or refused with their name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hostile import no_hang, refused, survive
from safetensors.torch import save

from geomcallbacks.cli import main
from geomcallbacks.phases.table import phases_of_file
from geomcallbacks.record import read_records, read_spectra
from geomcallbacks.report.data import read_runs
from geomcallbacks.report.loss import read_loss

SIZES = pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
pytestmark = pytest.mark.fault

NASTY: list[Any] = [
    None, True, False, 0, -1, 1.5, "8", "", "x" * 100, [], {}, [1], {"a": 1}, [1, 2], [1, 2, 3], 10**30, 10**400,
    -(10**400), 1e308, -1e-320, 1e999, -1e999, "\ud800", "\0", [[]], [["a", "b"]], ["../x", "k"], ["g.jsonl", "k"],
    ["a\0", "b"],
]  # fmt: skip
BYTES = [
    b"\0",
    b"\xff\xfe",
    b"\r\n",
    b"\n",
    b"NaN",
    b"-Infinity",
    b"[" * 20_000,
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b'"',
    b"}",
]


def lines() -> list[dict[str, Any]]:
    header = {"kind": "header", "schema": 1, "run_id": "x", "resumed_from": None, "settings": {"from_scratch": True}}
    record = {
        "kind": "record", "probe": "p", "layer": "layer3", "tokens": 9, "n": 64, "d": 16, "alpha_req": 1.0,
        "alpha_window": [2, 8],
        "intervals": {"rankme": [1.0, 2.0]}, "spectrum": ["f", "k"], "a/b": 0.5,
    }  # fmt: skip
    heights = [9.0, 5.0, 3.0, 5.0, 9.0, 17.0, 30.0, 31.0]
    return [header] + [record | {"step": 4**k, "rankme": height} for k, height in enumerate(heights)]


def hostile_file(seed: int) -> bytes:
    draw = random.Random(seed)
    whole = lines()
    for _ in range(draw.choice([0, 1, 1, 2])):
        line = draw.choice(whole)
        line[draw.choice([*line, "kind", "extra", "x/y"])] = draw.choice(NASTY)
        if draw.random() < 0.2:
            line.pop(draw.choice(list(line)))
    if draw.random() < 0.2:
        draw.shuffle(whole)
    found = bytearray("".join(json.dumps(line) + "\n" for line in whole).encode())
    for _ in range(draw.choice([0, 1, 1, 3])):
        at = draw.randrange(len(found) + 1)
        way = draw.randrange(5)
        if way == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del found[at : at + draw.randrange(60)]
        elif way == 2:
            found[at:at] = draw.choice(BYTES)
        elif way == 3:
            del found[at:]
        else:
            found[at:at] = found[at // 2 : at // 2 + 200]
    return bytes(found)


def plain_reader(content: bytes) -> list[dict[str, Any]]:
    """What a file says by `json` alone, where each line can be read."""
    records: list[dict[str, Any]] = []
    for text in content.split(b"\n"):
        if not text.strip():
            continue
        try:
            line = json.loads(text.decode("utf-8-sig"), parse_constant=int)  # int("NaN") is refused
        except (ValueError, RecursionError):
            continue
        if not isinstance(line, dict):
            continue
        if line.get("kind") == "header" and line.get("resumed_from") is not None:
            records = [record for record in records if record["step"] <= line["resumed_from"]]
        if line.get("kind") == "record":
            records.append({key: value for key, value in line.items() if key != "kind"})
    return records


def look(file: Path) -> None:
    """Everything that a report asks of a run."""
    (run,) = read_runs([file])
    for probe in run.probes:
        for layer in run.layers:
            for name in ("rankme", "alpha_req"):
                assert all(isinstance(point.value, float) for point in run.metric(name, probe, layer))
    for key in run.keys:
        run.number(key)
    assert run.last >= run.first or not run.phases
    for record in run.records:
        assert run.spectrum(record) is None


@SIZES
def test_record_files(tally: Callable[..., None], tmp_path: Path, count: int) -> None:
    file = tmp_path / "geometry.jsonl"

    def check(seed: int) -> None:
        content = hostile_file(seed)
        file.write_bytes(content)
        for reader in (read_records, phases_of_file, look):
            try:
                found = reader(file)
            except (ValueError, OSError) as error:
                refused(error)
            else:
                assert reader is not read_records or found == plain_reader(content)

    survive(tally, "hostile record file", st.integers(0, 2**32), check, count)


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_the_command_says_what_is_wrong(
    tally: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    """No traceback: status 0 and a table, or status 2 and one message."""
    for seed in range(count):
        file = tmp_path / "geometry.jsonl"
        file.write_bytes(hostile_file(seed))
        status = main(["phases", str(file), "--json"])
        said = capsys.readouterr()
        if status == 0:
            json.loads(said.out)
        else:
            assert (status, said.out) == (2, "")
            assert said.err.startswith("geomcallbacks phases: ")
    tally("hostile record file", count, count)


@pytest.mark.slow
def test_the_report_says_what_is_wrong(
    tally: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(25):
        file = tmp_path / "geometry.jsonl"
        file.write_bytes(hostile_file(seed))
        status = main(["report", str(file), "--out", str(tmp_path / "report")])
        said = capsys.readouterr()
        assert status == 0 or (status == 2 and said.err.startswith("geomcallbacks report: "))
    tally("hostile record file", 25, 25)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep", b"[" * 200_000 + b"\n{}\n"),
        ("digits", b'{"kind": "record", "step": ' + b"9" * 10_000 + b"}\n{}\n"),
        ("UTF-16", '{"kind": "record", "step": 1}\n'.encode("utf-16")  * 3),
        ("NUL", b"\0" * 5000 + b"\n{}\n"),
        ("NaN", b'{"kind": "record", "step": 1, "rankme": NaN}\n{}\n'),
        ("schema", b'{"kind": "header", "schema": "2"}\n'),
        ("resumed", b'{"kind": "header", "schema": 1, "resumed_from": "2"}\n'),
        ("null step", b'{"kind": "record", "step": null}\n'),
        ("true step", b'{"kind": "record", "step": true}\n'),
        ("no step", b'{"kind": "record", "rankme": 3}\n'),
    ],
)  # fmt: skip
def test_damage_is_named(tally: Callable[..., None], tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "g.jsonl").write_bytes(content)
    with no_hang(), pytest.raises(ValueError, match=r"g\.jsonl"):
        read_records(tmp_path / "g.jsonl")
    tally("hostile record file")


@pytest.mark.slow
def test_a_line_of_100_megabytes(tally: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "g.jsonl"
    for start, end, whole in ((b'"', b'"', True), (b"", b"", False)):
        file.write_bytes(b'{"kind": "record", "step": 1, "note": ' + start + b"9" * 10**8 + end + b"}\n{}\n")
        with no_hang(60):
            if whole:
                assert len(read_records(file)[0]["note"]) == 10**8
            else:
                with pytest.raises(ValueError, match="line 1, is not a record"):
                    read_records(file)
    tally("hostile record file", 2, 2)


def test_spectra_are_read_from_the_folder_of_the_records_alone(tally: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "other.safetensors").write_bytes(save({"k": torch.ones(3)}))
    (folder / "flat.safetensors").write_bytes(save({"k": torch.ones(3), "wide": torch.ones(2, 2)}))
    (folder / "torn.safetensors").write_bytes(save({"k": torch.ones(3)})[:-4])
    path = folder / "geometry.jsonl"
    assert read_spectra(path, {"spectrum": ["flat.safetensors", "k"]}).tolist() == [1, 1, 1]
    for kept in (
        ["../other.safetensors", "k"], [str(tmp_path / "other.safetensors"), "k"], ["flat.safetensors", "none"],
        ["flat.safetensors", "wide"], ["torn.safetensors", "k"], ["flat.safetensors"], "ab", 7, {"a": 1}, [1, 2],
        ["flat.safetensors\0", "k"],
    ):  # fmt: skip
        with pytest.raises(ValueError, match="spectrum"):
            read_spectra(path, {"step": 3, "spectrum": kept})
        tally("hostile record file")


@SIZES
def test_losses(tally: Callable[..., None], tmp_path: Path, count: int) -> None:
    whole = {
        ".csv": "step,train_loss\n" + "".join(f"{k},{9 - k}.5\n" for k in range(5)),
        ".json": json.dumps({"log_history": [{"step": k, "loss": 9.5 - k} for k in range(5)]}),
        ".jsonl": "".join(json.dumps({"step": k, "loss": 9.5 - k}) + "\n" for k in range(5)),
    }

    def check(drawn: tuple[int, str]) -> None:
        seed, suffix = drawn
        draw = random.Random(seed)
        text = bytearray(whole[suffix].encode())
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(text) + 1)
            replaced = draw.choice([*BYTES, b"1e999", b"-", b"null", b"x" * 140_000, b",", b"1e400,"])
            text[at : at + draw.randrange(9)] = replaced
        file = tmp_path / f"metrics{suffix}"
        file.write_bytes(text)
        try:
            points = read_loss(file)
        except ValueError as error:
            refused(error, str(file))
        else:
            assert points == sorted(points)
            assert all(isinstance(step, int) and abs(loss) < float("inf") for step, loss in points)

    survive(tally, "hostile record file", st.tuples(st.integers(0, 2**32), st.sampled_from(list(whole))), check, count)
