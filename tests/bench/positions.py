"""What `positions=k` does to RankMe and alpha at equal n, over resampled probes."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import fmean, median, stdev

import pretrain
import torch
from text.corpus import Corpus
from text.tokens import probe_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.section import Section
from geomcallbacks import GeometryMonitor, GeometryRecord, ProbeSet

CONFIG = Path(pretrain.__file__).parent / "configs" / "pretrain_tiny.yaml"
KS = [2, 4, 8, 16]


def train(folder: Path, updates: int = 2000) -> Path:
    """Train a small model of the pretraining recipe; its run folder."""
    changes = dict(output_dir=folder, updates=updates, hidden_size=64, alpha_first=6, alpha_last=48)
    changes |= dict(config=CONFIG, checkpoints="last", wandb="disabled")
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bar and summary
        pretrain.main(pretrain.make_parser().parse(words))
    return folder


def positions(device: torch.device, run: Path, n: int = 1024, draws: int = 20) -> Section:
    """Measure bias, spread and cost of each k, over probes drawn from the run's held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    trained = json.loads((run / "settings.json").read_text())
    length, window = trained["probe_length"], (trained["alpha_first"], trained["alpha_last"])
    last = max((run / "checkpoints").glob("step-*"))
    model = AutoModelForCausalLM.from_pretrained(last).to(device)
    texts = Corpus.load(run / "corpus").texts("probe")
    windows = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) // length for text in texts)
    kinds: dict[str | int, int] = {"last": n} | {k: n // k for k in KS}  # rows that give n features
    found: dict[str | int, list[GeometryRecord]] = {where: [] for where in kinds}
    for seed in range(draws):
        probe_nt = probe_rows(texts, tokenizer, n, length, seed)
        for where, rows in kinds.items():
            probe = ProbeSet.from_token_ids(probe_nt[:rows])
            monitor = GeometryMonitor(
                probe, positions=where, alpha_window=window, batch_size=256, spectra=False, on_error="raise"
            )
            found[where] += monitor.measure(model, 0)
    return Section(
        "positions=k at equal n",
        f"A model of the pretraining recipe ({last.name}, d = {model.config.hidden_size}), n = {n:,} features, alpha"
        f" over ranks {window[0]}-{window[1]}; {draws} probes drawn from the {windows:,} windows of {length} tokens of"
        " its held-out text. Bias: mean over the probes against that of `last`. Spread: standard deviation over the"
        " probes. Both in %.",
        [row(where, rows, found[where], found["last"]) for where, rows in kinds.items()],
    )


def row(where: str | int, rows: int, records: list[GeometryRecord], last: list[GeometryRecord]) -> dict[str, object]:
    """Return what one kind of positions gave, against the last."""
    cells: dict[str, object] = {"positions": where, "rows": rows}
    for key, title in (("rankme", "RankMe"), ("alpha_req", "alpha")):
        values = [record.metrics[key] for record in records]
        mean, mean_of_last = fmean(values), fmean(record.metrics[key] for record in last)
        cells[title] = mean
        cells[f"{title} bias (%)"] = 100 * (mean / mean_of_last - 1)
        cells[f"{title} spread (%)"] = 100 * stdev(values) / mean
    seconds, of_last = (median(r.seconds_forward + r.seconds_spectrum for r in kind) for kind in (records, last))
    return cells | {"ms": 1e3 * seconds, "times cheaper": of_last / seconds}
