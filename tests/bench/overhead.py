"""A training run with and without geometry, side by side."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from bench.section import Section
from geomcallbacks import GeometryMonitor, ProbeSet, Schedule

D, LAYERS, VOCABULARY, ROWS, LENGTH = 32, 2, 256, 128, 32
CHUNK = 25  # updates of one side before the next is given its turn
WITHOUT, DEFAULT, DENSE = "without", "default schedule", "every 10 updates"


@dataclass
class Side:
    """A run: its model and optimiser, and what measures it.

    Attributes:
        training: seconds of the updates of each chunk.
        measuring: seconds that `GeometryMonitor.step` took, in all.
        measured: how often it measured.
    """

    model: PreTrainedModel
    optimiser: torch.optim.Optimizer
    monitor: GeometryMonitor | None
    training: list[float] = field(default_factory=list)
    measuring: float = 0.0
    measured: int = 0

    def run(self, first: int, batches: Sequence[Tensor]) -> None:
        """Do updates `first`, `first` + 1, …, one for each batch (b, t + 1); before the first, measure update 0."""
        self.training.append(0.0)
        if first == 1:
            self._measure(0)
        for step, batch_bt in enumerate(batches, start=first):
            begin = time.perf_counter()
            self._update(batch_bt)
            self.training[-1] += time.perf_counter() - begin
            self._measure(step)

    def row(self, name: str, without: Side) -> dict[str, Any]:
        """Return a row of the table; the whole run is held against the same updates of that without."""
        training, same = sum(self.training), without.training[: len(self.training)]
        cells = {"run": name, "updates (s)": training, "measurements": self.measured, "measuring (s)": self.measuring}
        if self.measured:
            cells["ms a measurement"] = 1e3 * self.measuring / self.measured
            cells["measuring by updates (%)"] = 100 * self.measuring / training
            cells["whole run by that without"] = (training + self.measuring) / sum(same)
            cells["median chunk by that without"] = median(self.training) / median(same)
        return cells

    def _update(self, batch_bt: Tensor) -> None:
        logits_btv = self.model(input_ids=batch_bt[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_btv.flatten(0, 1), batch_bt[:, 1:].flatten())
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        loss.item()  # as a run does that prints its loss; the device's work ends inside the update's own time

    def _measure(self, step: int) -> None:
        if self.monitor is not None:
            begin = time.perf_counter()
            self.measured += len(self.monitor.step(self.model, step))
            self.measuring += time.perf_counter() - begin


def overhead(device: torch.device, updates: int = 5000) -> Section:
    """Measure the share of a run's time that measuring takes, at two schedules; the denser for a fifth of the run."""
    schedules = {WITHOUT: None, DEFAULT: Schedule(), DENSE: Schedule(every=10, per_decade=0)}
    lengths = {WITHOUT: updates, DEFAULT: updates, DENSE: updates // 5}
    generator = torch.Generator().manual_seed(0)
    probe = ProbeSet.from_token_ids(torch.randint(0, VOCABULARY, (4 * D, LENGTH), generator=generator))
    same = True
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: side(schedule, probe, Path(folder) / f"{name}.jsonl", lengths[name], device)
            for name, schedule in schedules.items()
        }
        warm = side(Schedule(), probe, Path(folder) / "warm-up.jsonl", updates, device)
        for first in range(1, updates + 1, CHUNK):
            count = min(CHUNK, updates + 1 - first)
            batches = torch.randint(0, VOCABULARY, (count, ROWS, LENGTH + 1), generator=generator).to(device).unbind()
            if first == 1:
                warm.run(first, batches)
            for name, run in runs.items():
                if first <= lengths[name]:
                    run.run(first, batches)
                    same &= alike(run.model, runs[WITHOUT].model)
    return Section(
        f"Overhead on a training run of {updates:,} updates",
        f"GPT-NeoX, d = {D}, {LAYERS} layers, {ROWS} x {LENGTH} tokens an update, AdamW, a plain loop with"
        f" `GeometryMonitor`, which writes records and spectra; probe of n = 4d = {4 * D} rows of {LENGTH} tokens,"
        ' positions="last": as many tokens as an update (for Pythia-160M, 3,072 rows of 512 are three quarters of one'
        f" of its updates). The runs take turns, {CHUNK} updates each; the last ends after a fifth. Measuring is all"
        " time in `GeometryMonitor.step`, whether it measures or not; the whole run is held against the same updates of"
        " that without.",
        [run.row(name, runs[WITHOUT]) for name, run in runs.items()],
        [f"Weights with and without: {'bit-identical' if same else 'they DIFFER'}."],
    )


def alike(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Return whether two models have the same weights, bit for bit."""
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def side(schedule: Schedule | None, probe: ProbeSet, path: Path, updates: int, device: torch.device) -> Side:
    """Return a run before its first update; all have the same weights."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=4 * D
    )
    model = AutoModelForCausalLM.from_config(config).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    fixed = dict(alpha_window=(4, 24), batch_size=4 * D, total_steps=updates, on_error="raise")
    monitor = None if schedule is None else GeometryMonitor(probe, schedule=schedule, path=path, **fixed)
    return Side(model, optimiser, monitor)
