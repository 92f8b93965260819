"""Names and links that come with a run read and write nothing outside its folder, and do nothing on the page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_cache
import pytest
import tiny
import torch
from PIL import Image
from run_folders import Page, write_run
from safetensors.torch import save_file

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.behaviour import BehaviourMonitor
from geomcallbacks.cli import main
from geomcallbacks.record import read_spectra
from geomcallbacks.trace.checkpoints.find import find_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub

Tally = Callable[..., None]
pytestmark = pytest.mark.fault

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }}{% for x in y %}",
    "</style></title><style>@import 'http://x.example/'</style>",
    "javascript:alert(3)",
    "\u202e\u2066gpj.evil",
    "<!--",
    "]]><svg onload=alert(4)>",
    "<a href=https://x.example/>",
]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with files of another: a spectrum that must not be read, and texts that must not be written."""
    folder = tmp_path / "outside"
    folder.mkdir()
    save_file({"0": torch.arange(9.0, 0.0, -1.0)}, folder / "s.safetensors")
    (folder / "victim").write_text("mine")
    return folder


def links(run: Path, outside: Path) -> dict[str, str]:
    """What a record may name as the file of its spectrum."""
    (run / "link.safetensors").symlink_to(outside / "s.safetensors")
    (run / "inside").symlink_to(outside)
    os.mkfifo(run / "pipe.safetensors")
    return {
        "upwards": "../outside/s.safetensors",
        "hidden": "geometry-spectra/../../outside/s.safetensors",
        "absolute": str(outside / "s.safetensors"),
        "link": "link.safetensors",
        "through a link": "inside/s.safetensors",
        "null": "a\0b",
        "pipe": "pipe.safetensors",
    }


@pytest.mark.parametrize("kind", ["upwards", "hidden", "absolute", "link", "through a link", "null", "pipe"])
def test_no_spectrum_is_read_from_outside_the_folder_of_the_records(
    kind: str, outside: Path, tmp_path: Path, tally: Tally
) -> None:
    run = write_run(tmp_path / "run").parent
    name = links(run, outside)[kind]
    lines = [json.loads(line) for line in (run / "geometry.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["spectrum"] = [name, "0"]
    (run / "geometry.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = "is no file there" if kind == "pipe" else "is outside the folder of the records"
    with pytest.raises((ValueError, FileNotFoundError), match=refused):
        read_spectra(run / "geometry.jsonl", lines[1])
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0  # without the figure of the spectra
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"index.html", "analysis.png"}
    tally("file names")


def test_the_spectra_of_the_folder_itself_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "other way").symlink_to(tmp_path / "run")
    for path in (run, tmp_path / "other way" / "geometry.jsonl"):
        assert len(read_spectra(path, read_records(run)[0])) == 32


def test_a_report_is_not_written_through_links(
    outside: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    run, before = write_run(tmp_path / "run").parent, files(outside)
    (run / "report").mkdir()
    for name in ("index.html", "analysis.png", "spectra.png"):
        (run / "report" / name).symlink_to(outside / "victim")
    assert main(["report", str(run)]) == 0
    assert files(outside) == before
    assert "<!DOCTYPE html>" in (run / "report/index.html").read_text()
    (run / "report").rename(run / "old")
    (run / "report").symlink_to(outside)
    assert main(["report", str(run)]) == 2
    assert "report is a link" in capfd.readouterr().err
    assert files(outside) == before
    tally("file names", 4, 4)


def test_a_trace_is_not_written_through_links(
    outside: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    before, run, probe = files(outside), tmp_path / "run", tmp_path / "probe.safetensors"
    tiny.model().save_pretrained(run / "checkpoint-3")
    tiny.probe().save(probe)
    command = ["trace", str(run), "--probe", str(probe), "--alpha-window", *map(str, tiny.WINDOW)]
    (run / ".geometry-trace.jsonl.new").symlink_to(outside / "victim")
    (run / "geometry-trace-spectra").symlink_to(outside)
    assert main(command) == 2
    assert "geometry-trace-spectra is a link" in capfd.readouterr().err
    (run / "geometry-trace-spectra").unlink()
    assert main(command) == 0
    assert len(read_records(run / "geometry-trace.jsonl")) == 1
    assert files(outside) == before
    tally("file names", 2, 2)


@pytest.mark.parametrize("fingerprint", ["../../outside/probe", "/etc/passwd", "*"])
def test_a_probe_is_found_by_what_it_holds_and_not_by_a_name(
    fingerprint: str, outside: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    run = tmp_path / "run"
    monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, path=run / "geometry.jsonl")
    monitor.step(tiny.model(), 0)
    monitor.close()
    tiny.model().save_pretrained(run / "checkpoint-3")
    tiny.probe(seed=9).save(outside / "probe.safetensors")
    text = (run / "geometry.jsonl").read_text()
    (run / "geometry.jsonl").write_text(text.replace(tiny.probe().fingerprint, fingerprint))
    assert main(["trace", str(run)]) == 2
    assert "which is not kept in its folder" in capfd.readouterr().err
    tally("file names")


@pytest.mark.parametrize("revision", ["../../outside", "refs/../main", "/etc", "a/../../b"])
def test_a_revision_must_be_one_that_the_hub_lists(revision: str, tmp_path: Path, tally: Tally) -> None:
    hub_cache.add_revision(tmp_path / "cache", "org/tiny", "main", hub_cache.model_files(0))
    hub = Hub(tmp_path / "cache")
    with pytest.raises(ValueError, match="is not one of the 1 of org/tiny"):
        find_checkpoints([f"org/tiny@{revision}"], hub)
    for name in ("../tiny", "a/../b", "..", "org/tiny/../x"):
        with pytest.raises(ValueError, match=r"is no folder|holds no checkpoints|no hub name"):
            find_checkpoints([name], hub)
    tally("file names", 5, 5)


@pytest.mark.parametrize("label", ["../../outside/x", "/etc/x", "a/b/../../..", "con\0", "x" * 400, *HOSTILE])
def test_labels_make_no_file_names(label: str, outside: Path, tmp_path: Path, tally: Tally) -> None:
    before = files(outside)
    path = tmp_path / "run" / "geometry.jsonl"
    monitor = GeometryMonitor({label: tiny.probe(), "b": tiny.probe(seed=2)}, alpha_window=tiny.WINDOW, path=path)
    record = monitor.step(tiny.model(), 0)[0]
    monitor.close()
    assert {file.name for file in tmp_path.iterdir()} == {"outside", "run"}
    assert sorted(child.name for child in path.parent.iterdir()) == [
        "geometry-probes",
        "geometry-spectra",
        "geometry.jsonl",
    ]
    assert read_spectra(path, read_records(path)[0]).tolist() == pytest.approx(record.eigenvalues.tolist(), rel=1e-5)
    assert files(outside) == before
    if "/" in label:
        with pytest.raises(ValueError, match="without '/'"):
            BehaviourMonitor({label: lambda model: {}})
    tally("file names")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_hostile_texts_do_nothing_on_the_page(kind: str, tmp_path: Path, tally: Tally) -> None:
    header: dict[str, Any] = {
        "settings": {text: [text] for text in HOSTILE},
        "versions": {text: text for text in HOSTILE},
    }
    numbers = {f"{text.replace('/', '')}/{text}": 1.0 for text in HOSTILE}
    name = HOSTILE[1]
    run = write_run(tmp_path / name, probes=HOSTILE[:2], layers=HOSTILE[2:4], numbers=numbers, header=header)
    command = ["report", str(run), "--out", str(tmp_path / "out"), "--format", kind, "--title", HOSTILE[3]]
    assert main(command) == 0
    page = Page(tmp_path / "out/index.html")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "svg", "a", "iframe", "object", "embed", "form", "base", "input"}
    assert [tag for tag, _ in page.tags].count("style") == 1
    attributes = [(tag, name, value or "") for tag, found in page.tags for name, value in found.items()]
    assert not [name for _, name, _ in attributes if name.startswith("on")]
    addresses = [
        value for _, name, value in attributes if name in ("src", "href", "action", "srcset", "data", "content")
    ]
    assert not [value for value in addresses if "://" in value or value.lower().startswith("javascript")]
    assert any(name == "http-equiv" and value == "Content-Security-Policy" for _, name, value in attributes)
    for text in HOSTILE:
        assert text in page.text
    figures = sorted((tmp_path / "out").glob(f"*.{kind}"))
    assert figures
    for figure in figures:
        if kind == "png":
            assert set(Image.open(figure).info) <= {"Software", "dpi"}
        else:
            assert not [word for word in ("<script", "<img", "<a ", " onload=", " onerror=") if word in _markup(figure)]
    tally("page", len(HOSTILE), len(HOSTILE))


def _markup(figure: Path) -> str:
    """An SVG without its comments, in which matplotlib repeats each text."""
    return "".join(part.rpartition("-->")[2] for part in figure.read_text(encoding="utf-8").split("<!--"))


def test_names_act_on_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2J\u202ex"
    run = write_run(tmp_path / "run", probes=[nasty], layers=[nasty])
    assert main(["phases", str(run)]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    assert main(["phases", str(tmp_path / nasty)]) == 2
    said = "".join(capfd.readouterr())
    assert "owned" in said
    assert not set(said) & {"\x1b", "\x07", "\u202e"}
    tally("terminal", 3, 3)
