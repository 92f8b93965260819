"""The README's code runs as it stands, top to bottom, on tiny stand-ins for what the reader brings."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import test_lightning
import tiny
import torch
from transformers import Trainer, TrainingArguments

import geomcallbacks
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.monitor import GeometryMonitor

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids, mask = tiny.rows(16)
    model = tiny.model()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_on(batch):
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    # d = 16 in place of a real model's: the default window of alpha and the probe's size are brought down with it.
    monkeypatch.setattr(geomcallbacks.ProbeSet, "from_texts", lambda *args, **settings: tiny.probe())
    names = {
        "held_out_texts": tiny.texts(),
        "tokenizer": tiny.tokenizer(),
        "model": model,
        "args": TrainingArguments(str(tmp_path / "out"), max_steps=3, use_cpu=True, report_to="none"),
        "dataset": [{"input_ids": row, "labels": row} for row in ids],
        "module": test_lightning.Module(),
        "dataloader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, mask)),
        "prompts": tiny.texts(4, words=6),
        "completions": tiny.texts(4, words=6, seed=3),
        "batches": [ids[:4]] * 3,
        "train_on": train_on,
        "Trainer": Trainer,
        "L": L,
    }
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    for block in blocks:
        code = block.replace("(probe", f"(probe, alpha_window={tiny.WINDOW}").replace("max_steps=1000", "max_steps=3")
        exec(compile(code, "README.md", "exec"), names)
    assert list(names["frame"]["step"]) == [0, 1, 2, 3]


def test_tables_name_every_metric_and_every_setting():
    logged = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `")))
    )
    assert set(METRIC_NAMES) <= logged
    settings = set(GeometryMonitor.__init__.__annotations__) - {"return", "total_steps"}
    assert settings <= logged, settings - logged
