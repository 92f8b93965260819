"""What `positions=k` does to RankMe and alpha at equal n, over resampled probes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median, stdev

import torch
from text.corpus import Corpus
from text.tokens import probe_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.table import Section
from geomcallbacks import GeometryRecord, ProbeSet
from geomcallbacks.measure import measure_probe
from geomcallbacks.settings import Settings

ROOT = Path(__file__).parents[2]
KS = [2, 4, 8, 16]


def train(folder: Path, updates: int = 2000) -> Path:
    """A small model of the pretraining recipe; its run folder."""
    command = [sys.executable, "recipes/pretrain.py", "--config", "recipes/configs/pretrain_tiny.yaml"]
    changes = dict(output_dir=folder, updates=updates, hidden_size=64, alpha_first=6, alpha_last=48)
    changes |= dict(checkpoints="last", wandb="disabled")
    command += [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900)
    return folder


def positions(device: torch.device, run: Path, n: int = 1024, draws: int = 20) -> Section:
    """Bias, spread and cost of each k against the last position, over probes drawn from the run's held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    trained = json.loads((run / "settings.json").read_text())
    length, window = trained["probe_length"], (trained["alpha_first"], trained["alpha_last"])
    last = max((run / "checkpoints").glob("step-*"))
    model = AutoModelForCausalLM.from_pretrained(last).to(device)
    d, texts = model.config.hidden_size, Corpus.load(run / "corpus").texts("probe")
    windows = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) // length for text in texts)
    kinds: dict[str, tuple[str | int, int]] = {"last": ("last", n)} | {f"{k}": (k, n // k) for k in KS}
    found: dict[str, list[GeometryRecord]] = {name: [] for name in kinds}
    for seed in range(draws):
        probe_nt = probe_rows(texts, tokenizer, n, length, seed)
        for name, (where, rows) in kinds.items():
            settings = Settings(positions=where, alpha_window=window, batch_size=256)
            found[name] += measure_probe(model, name, ProbeSet.from_token_ids(probe_nt[:rows]), settings, step=0)
    return Section(
        "positions=k at equal n",
        f"A model of the pretraining recipe ({last.name}, d = {d}), n = {n:,} features, alpha over ranks"
        f" {window[0]}-{window[1]}; {draws} probes drawn from the {windows:,} windows of {length} tokens of its"
        " held-out text. Bias: mean over the probes against that of `last`. Spread: standard deviation over the probes."
        " Both in %.",
        [row(name, where, rows, found) for name, (where, rows) in kinds.items()],
    )


def row(name: str, where: str | int, rows: int, found: dict[str, list[GeometryRecord]]) -> dict[str, object]:
    """What one kind of positions gave, against the last."""
    cells: dict[str, object] = {"positions": where, "rows": rows}
    for key, title in (("rankme", "RankMe"), ("alpha_req", "alpha")):
        mine, last = ([record.metrics[key] for record in found[kind]] for kind in (name, "last"))
        cells |= {
            title: fmean(mine),
            f"{title} bias (%)": 100 * (fmean(mine) / fmean(last) - 1),
            f"{title} spread (%)": 100 * stdev(mine) / fmean(mine),
        }
    seconds, of_last = (median(r.seconds_forward + r.seconds_spectrum for r in found[kind]) for kind in (name, "last"))
    return cells | {"ms": 1e3 * seconds, "times cheaper": of_last / seconds}
