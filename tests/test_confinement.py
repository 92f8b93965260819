"""Names and links that come with a run read and write nothing outside its folder, and act on no terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from run_folders import live
from safetensors.torch import save_file

from geomcallbacks import GeometryMonitor, read_records, read_spectra
from geomcallbacks.behaviour import BehaviourMonitor
from geomcallbacks.cli import main


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of another: a spectrum that must not be read, and a text that must not be written."""
    folder = tmp_path / "outside"
    folder.mkdir()
    save_file({"0": torch.arange(9.0, 0.0, -1.0)}, folder / "s.safetensors")
    (folder / "victim").write_text("mine")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The record file of a run of seven measurements, with their checkpoints beside it."""
    return live(tmp_path / "run", range(7)) / "geometry.jsonl"


def test_no_spectrum_is_read_from_outside_the_folder_of_the_records(outside: Path, run: Path) -> None:
    (run.parent / "link.safetensors").symlink_to(outside / "s.safetensors")
    (run.parent / "inside").symlink_to(outside)
    os.mkfifo(run.parent / "pipe.safetensors")
    record = read_records(run)[0]
    for name in (
        "../outside/s.safetensors", "geometry-spectra/../../outside/s.safetensors", str(outside / "s.safetensors"),
        "link.safetensors", "inside/s.safetensors", "a\0b",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is outside the folder of the records"):
            read_spectra(run, record | {"spectrum": [name, "0"]})
    with pytest.raises(FileNotFoundError, match="is no file there"):
        read_spectra(run, record | {"spectrum": ["pipe.safetensors", "0"]})
    (run.parent.parent / "other way").symlink_to(run.parent)
    assert len(read_spectra(run.parent.parent / "other way" / run.name, record)) == 16


def test_a_report_shows_nothing_of_outside_and_is_not_written_through_links(
    outside: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, report = files(outside), run.parent / "report"
    lines = [json.loads(line) for line in run.read_text().splitlines()]
    (header, *records) = [line | {"spectrum": ["../outside/s.safetensors", "0"]} for line in lines]
    run.write_text("".join(json.dumps(line) + "\n" for line in (header, *records)))
    report.mkdir()
    for name in ("index.html", "analysis.png", "spectra.png"):
        (report / name).symlink_to(outside / "victim")
    assert main(["report", str(run.parent)]) == 0
    assert "<!DOCTYPE html>" in (report / "index.html").read_text()
    assert (report / "spectra.png").is_symlink()  # not drawn
    report.rename(run.parent / "old")
    report.symlink_to(outside)
    assert main(["report", str(run.parent)]) == 2
    assert "report is a link" in capfd.readouterr().err
    assert files(outside) == before


def test_a_trace_is_not_written_through_links(outside: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, folder = files(outside), run.parent
    (folder / f".geometry-trace.jsonl.{os.getpid()}.tmp").symlink_to(outside / "victim")
    (folder / "geometry-trace-spectra").symlink_to(outside)
    assert main(["trace", str(folder)]) == 2
    assert "geometry-trace-spectra is a link" in capfd.readouterr().err
    (folder / "geometry-trace-spectra").unlink()
    assert main(["trace", str(folder)]) == 0
    assert len(read_records(folder / "geometry-trace.jsonl")) == 7
    assert files(outside) == before


@pytest.mark.parametrize("label", ["../../outside/x", "/etc/x", "con\0", "x" * 400, "<img src=x>"])
def test_labels_make_no_file_names(label: str, outside: Path, tmp_path: Path) -> None:
    before, path = files(outside), tmp_path / "run" / "geometry.jsonl"
    if "/" in label:
        for monitor in (GeometryMonitor, BehaviourMonitor):
            with pytest.raises(ValueError, match="without '/'"):
                monitor({label: tiny.probe() if monitor is GeometryMonitor else lambda model: {}})
        return
    monitor = GeometryMonitor({label: tiny.probe()}, alpha_window=tiny.WINDOW, path=path)
    record = monitor.step(tiny.model(), 0)[0]
    monitor.close()
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["_geometry-probes", "geometry-spectra", "geometry.jsonl"]
    assert read_spectra(path, read_records(path)[0]).tolist() == pytest.approx(record.eigenvalues.tolist(), rel=1e-5)
    assert files(outside) == before


def test_names_act_on_no_terminal(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2J\u202ex"
    run.write_text(run.read_text().replace('"probe": "probe"', f'"probe": {json.dumps(nasty)}'))
    assert main(["phases", str(run)]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    assert main(["phases", str(tmp_path / nasty)]) == 2
    text = "".join(capfd.readouterr())
    assert "owned" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
