"""Folders of runs as the callbacks leave them, and a page as another parser sees it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch

from geomcallbacks import GeometryMonitor, GeometryRecord
from geomcallbacks.running.record_writer import RecordWriter, record_lines

STEPS = [0, *(round(10 ** (k / 6)) for k in range(3, 22))]
HEADER = {"settings": {"layers": -1, "from_scratch": True, "schedule": {"every": None, "at": []}}}


def rankme(step: int) -> float:
    """A fall to 4 at update 32 or so, a rise to 22 at 1,000, and a fall; hardly any noise."""
    curve = np.interp(math.log10(1 + step), [0, 0.5, 1.5, 3.0, 3.6], [20.0, 19.0, 4.0, 22.0, 15.0])
    return float(curve * math.exp(0.004 * math.sin(37 * step)))


def write_run(
    folder: Path,
    *,
    probes: list[str] | None = None,
    layers: list[str] | None = None,
    numbers: dict[str, float] | None = None,
    header: dict[str, Any] | None = None,
    name: str = "geometry.jsonl",
) -> Path:
    """A run of a curve with all three phases; `numbers` are behaviour, as multiples of the log of the update."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(folder / name, 0, HEADER | (header or {}))
    pairs = list(itertools.product(probes or ["probe"], layers or ["layer2"]))
    for step in STEPS:
        values = torch.arange(1, 33, dtype=torch.float64) ** -(20 / rankme(step))
        records = [
            GeometryRecord(
                step=step, tokens=512 * step, probe=probe, fingerprint="feed", layer=layer, module="model", positions=8,
                n=2048, d=32, reasons={}, alpha_window=(4, 24), precision="fp32", batch_size=32, seconds_forward=0.1,
                metrics={"rankme": rankme(step) * (1 + index), "alpha_req": 20 / rankme(step), "top1_share": 0.2},
                seconds_spectrum=0.1, eigenvalues=values,
            )
            for index, (probe, layer) in enumerate(pairs)
        ]  # fmt: skip
        writer.write(*record_lines(records, writer.keep_spectra(step, records)))
    writer.close()
    if numbers:
        beside = RecordWriter(folder / name.replace("geometry", "behaviour"), 0, {"measures": {}})
        for step in STEPS[::2]:
            beside.write({"step": step, "seconds": 0.1} | {k: v * math.log10(10 + step) for k, v in numbers.items()})
        beside.close()
    return folder / name


def live(folder: Path, steps: Iterable[int] = (0, 1), **more: Any) -> Path:
    """A run's folder with the records of a monitor and a checkpoint at each step."""
    settings = {"alpha_window": tiny.WINDOW, "on_error": "raise"} | more
    monitor = GeometryMonitor(tiny.probe(), path=folder / "geometry.jsonl", **settings)
    for step in steps:
        model = tiny.model(seed=step)
        monitor.measure(model, step)
        model.save_pretrained(folder / f"checkpoint-{step}")
    monitor.close()
    return folder


def write_loss(folder: Path, steps: list[int], shift: float = 0.0) -> None:
    """Lightning's metrics.csv: 7 − log10(1 + step) + shift at each step, and a row that holds no loss."""
    folder.mkdir(parents=True)
    rows = [f",{7 - math.log10(1 + step) + shift},{step}" for step in steps]
    (folder / "metrics.csv").write_text("\n".join(["geometry/rankme,loss,step", "3.5,,1", *rows]) + "\n")


class Page(HTMLParser):
    """The tags of a page with their attributes, its style, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = self._tag = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag == "style" and not self.style:
            self.style = data
        else:
            self.text += data

    def cells(self, title: str) -> list[list[str]]:
        """Rows of the tables from the one under this heading on."""
        return [row.strip().split("\n") for row in re.split(r"\n{2,}", self.text.partition(title)[2])]
