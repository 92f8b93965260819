"""The README's code runs as it stands, top to bottom, on small stand-ins for what the reader brings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import drives
import lightning as L
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, Trainer, TrainingArguments

from geomcallbacks import read_records
from geomcallbacks.metrics import METRIC_NAMES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


class StopsEarly(drives.Module):
    """The reader's module, which has had enough after one update."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trainer.should_stop = True


def brought_by_the_reader(folder: Path) -> dict[str, Any]:
    """By the names of the README. The model is wide enough for the default window of α."""
    shape = dict(vocab_size=tiny.VOCABULARY, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(**shape, hidden_size=104, intermediate_size=16))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_on(batch: torch.Tensor) -> None:
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    module = StopsEarly()
    module.network = model
    return {
        "held_out_texts": tiny.texts(8192, words=31),
        "tokenizer": tiny.tokenizer(),
        "model": model,
        "args": TrainingArguments(str(folder / "out"), max_steps=1, use_cpu=True, report_to="none"),
        "dataset": drives.token_dataset(16),
        "module": module,
        "dataloader": drives.batches(),
        "prompts": tiny.texts(4, words=6),
        "completions": tiny.texts(4, words=6, seed=3),
        "batches": [tiny.rows(4)[0]] * 2,
        "train_on": train_on,
        "Trainer": Trainer,
        "L": L,
    }


def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = brought_by_the_reader(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert len(blocks) >= 6
    assert list(names["frame"]["step"]) == [0, 1, 2]
    assert all(record["rankme"] > 1 and record["alpha_req"] for record in read_records("geometry.jsonl"))
    assert {file.parent.name for file in tmp_path.rglob("geometry.jsonl")} == {tmp_path.name, "out", "version_0"}


def test_tables_name_every_metric() -> None:
    first_cells = (line.split("|")[1] for line in README.splitlines() if line.startswith("| `"))
    assert set(METRIC_NAMES) <= set(re.findall(r"`(\w+)`", "".join(first_cells)))
