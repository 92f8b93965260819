"""The rule while a run goes on: what is told of it, and by whom."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from demo_curve import DEMO
from drives import fit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

import geomcallbacks.hf
import geomcallbacks.lightning
from geomcallbacks import GeometryMonitor, PhaseTracker, ProbeSet, Schedule, find_phases, read_records
from geomcallbacks.phases import PHASE_NAMES, Phase
from geomcallbacks.phases.rule import phase_change

WARM, UP, DOWN = PHASE_NAMES


@pytest.mark.parametrize(
    ("before", "now", "news"),
    [
        ([], [], "None"),
        ([UP], [UP], "None"),
        ([UP], [WARM, UP], "None"),  # news of the past alone
        ([], [WARM], "warm-up since update 0: RankMe 5 → 9"),
        ([WARM], [WARM, UP], "entropy-seeking since update 10: RankMe 5 → 9"),
        ([WARM, UP, DOWN], [WARM, UP, DOWN, UP, DOWN], "compression-seeking since update 40: RankMe 5 → 9"),
        ([UP, DOWN, UP], [UP], "still entropy-seeking: compression-seeking since update 10 did not last"),
        ([WARM, UP], [WARM], "still warm-up: entropy-seeking since update 10 did not last"),
        ([UP], [], "in no phase: entropy-seeking since update 0 did not last"),
    ],
)
def test_what_is_told_of_a_change(before: list[str], now: list[str], news: str) -> None:
    old, new = ([Phase(name, 10.0 * k, 0.0, None, None, 5.0, 9.0) for k, name in enumerate(x)] for x in (before, now))
    assert str(phase_change(old, new)) == news


def test_tracker_follows_the_rule_on_the_curve_so_far() -> None:
    tracker, began = PhaseTracker(), {}
    for k, (step, rankme, _) in enumerate(DEMO, start=1):
        news = tracker.add(step, rankme)
        steps, values, _ = zip(*DEMO[:k], strict=True)
        assert tracker.phases == find_phases(steps, values)
        assert tracker.name == (tracker.phases[-1].name if tracker.phases else None)
        if news is not None:
            assert (news.kind, news.name) == ("began", news.phase.name)
            began[step] = news
    assert {step: news.name for step, news in began.items()} == {6: WARM, 42: UP, 3840: DOWN}
    assert str(began[42]).startswith("entropy-seeking since update 32 (24–")


def test_tracker_takes_back_what_did_not_last() -> None:
    tracker = PhaseTracker()
    for step, rankme in enumerate([100, 80, 64, 51, 41, 33, 40, 44]):
        tracker.add(step, rankme)
    assert tracker.name == UP
    news = [tracker.add(step, rankme) for step, rankme in ((6, 26.0), (7, 21.0))]  # measured again, from a checkpoint
    assert (news[0].kind, news[0].phase.name, news[0].name, news[1]) == ("withdrawn", UP, WARM, None)
    assert tracker.name == WARM


# --- in a run -----------------------------------------------------------------------------------------------------

DECAY = [0.5, 0.7, 1.0, 1.4, 1.9, 2.4, 2.0, 1.6, 1.2, 0.9, 0.7, 0.6]
LAST = len(DECAY) - 1
#: Nothing before the sixth value; a fall; and a rise when two measurements lie behind the trough, update 5.
NAMES = [None] * 5 + [WARM] * 2 + [UP] * 5
NUMBERS = [None if name is None else PHASE_NAMES.index(name) for name in NAMES]
SETTINGS = dict(layers="table", alpha_window=(2, 8), schedule=Schedule(every=1), on_error="raise")
PROBE = ProbeSet.from_token_ids([[0, i] for i in range(1, 65)])


class Shaped(nn.Module):
    """Its states are a table whose spectrum is set, so that RankMe is known: λᵢ ∝ i^−decay. A training step sets the
    next one.
    """

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.table, self.stop = nn.Embedding(65, 16), stop
        self.register_buffer("updates", torch.tensor(0))
        rows = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.base = torch.linalg.qr(rows - rows.mean(0))[0]
        self.shape(0)

    @torch.no_grad()
    def shape(self, step: int) -> None:
        self.updates.fill_(step)
        self.table.weight[1:] = (self.base * torch.arange(1, 17) ** (-DECAY[step] / 2)).float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        if self.training and int(self.updates) == self.stop:
            raise KeyboardInterrupt
        loss = self.table(input_ids).sum() * 0.0
        if self.training:
            self.shape(int(self.updates) + 1)
        return {"loss": loss}


def drive(monitor: GeometryMonitor) -> list[list[str | None]]:
    """The phase of each curve at the updates 0, 1, …"""
    model, found = Shaped(), []
    for step in range(LAST + 1):
        model.shape(step)
        found.append([record.phase for record in monitor.step(model, step)])
    return found


def told(text: str) -> list[str]:
    """The phases of which lines tell that they began."""
    heads = [line.strip().partition(" since ")[0] for line in text.splitlines() if "since update" in line]
    return [head.rpartition(": ")[2] for head in heads]


@pytest.mark.parametrize(("from_scratch", "first"), [(None, WARM), (False, DOWN)])
def test_monitor_records_and_tells_the_phase(tmp_path: Path, caplog, from_scratch: bool | None, first: str) -> None:
    path = tmp_path / "geometry.jsonl"
    monitor = GeometryMonitor({"a": PROBE, "b": PROBE}, path=path, from_scratch=from_scratch, **SETTINGS)
    wanted = [first if name == WARM else name for name in NAMES]
    with caplog.at_level("INFO", logger="geomcallbacks"):
        assert drive(monitor) == [[name, name] for name in wanted]
    share = np.arange(1, 17) ** -np.array(DECAY)[:, None]
    share /= share.sum(1, keepdims=True)
    rows = [row for row in read_records(path) if row["probe"] == "a"]
    assert [row["rankme"] for row in rows] == pytest.approx(np.exp(-(share * np.log(share)).sum(1)), rel=1e-5)
    assert [row["phase"] for row in rows] == wanted
    assert told(caplog.text) == [first, first, UP, UP]
    monitor.close()
    assert drive(monitor) == [[name, name] for name in wanted]  # a new run of the same monitor starts a new curve


def test_trainer_that_is_resumed_goes_on_in_its_phase(tmp_path: Path, capsys) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=LAST, per_device_train_batch_size=1, logging_steps=50, save_steps=7,
        report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": torch.tensor([0, i])} for i in range(1, 65)]
    for stop in (9, None):
        callback = geomcallbacks.hf.GeometryCallback(PROBE, **SETTINGS)
        trainer = Trainer(Shaped(stop), args, train_dataset=data, callbacks=[callback])
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=stop is None)
    rows = [row for row in trainer.state.log_history if any(key.endswith("/rankme") for key in row)]
    phases = {row["step"]: next((row[key] for key in row if key.endswith("/phase")), None) for row in rows}
    assert phases == dict(enumerate(NUMBERS))
    assert [row["phase"] for row in read_records(tmp_path / "geometry.jsonl")] == NAMES
    assert told(capsys.readouterr().out) == [WARM, UP]


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = Shaped()

    def training_step(self, batch, batch_idx):
        return self.network(batch[0])["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_logs_the_phase(tmp_path: Path, capsys) -> None:
    settings = {**SETTINGS, "layers": "network.table", "forward": lambda model, ids, mask: model.network(ids)}
    data = DataLoader(TensorDataset(torch.arange(1, 65)[:, None]), batch_size=1)
    length = dict(max_steps=LAST, accumulate_grad_batches=1, log_every_n_steps=50, enable_progress_bar=True)
    trainer, _ = fit(tmp_path, [geomcallbacks.lightning.GeometryCallback(PROBE, **settings)], Module(), data, **length)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    key = next(key for key in rows[0] if key.endswith("/phase"))
    logged = {int(row["step"]): row[key] for row in rows if row[key.replace("phase", "rankme")]}
    assert logged == {step: "" if number is None else str(number) for step, number in enumerate(NUMBERS)}
    assert trainer.callback_metrics[key] == 1
    assert told(capsys.readouterr().out) == [WARM, UP]
