r"""The analytically tractable model of Li et al. 2025 (arXiv 2509.23024, section 5), its controls, and its condition.

    python recipes/softmax_bottleneck.py             # seconds on a CPU
    python recipes/softmax_bottleneck.py --large     # also with 1,024 classes, which the paper does not: about a minute

Writes bottleneck.md (tables), bottleneck.json (every number, by seed) and bottleneck.png into ``--output_dir``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tractable.figure import draw
from tractable.large import Large, train_large
from tractable.model import Paths, Setting, rankme_curves, train, turns
from tractable.table import render

from geomcallbacks.phases import find_phases

UNIFORM = (2, 2, 2, 2)

#: What the figure shows: the model, its four controls, and the model from a start that nobody constructed.
SETTINGS = (
    Setting("skewed classes"),
    Setting("uniform classes", UNIFORM),
    Setting("d = 3, |V| = 4", d=3),
    Setting("squared error, skewed", loss="squared error"),
    Setting("squared error, uniform", UNIFORM, loss="squared error"),
    Setting("skewed, random start", start="random", scale=0.3, rate=0.3, seeds=20),
)
#: What the condition is: skewed classes unless said, and what changes the start, the rate or the length.
CONDITIONS = (
    Setting("jitter 1e-5", scale=1e-5),
    Setting("jitter 1e-4", scale=1e-4),
    Setting("jitter 1e-2", scale=1e-2, seeds=20),
    Setting("jitter 3e-2", scale=3e-2, seeds=20),
    Setting("jitter 0.1", scale=0.1, seeds=20),
    Setting("random start, deviation 0.01", start="random", scale=0.01, rate=0.3, seeds=20),
    Setting("random start, deviation 1", start="random", scale=1.0, rate=0.3, seeds=20),
    Setting("uniform, random start 0.3", UNIFORM, start="random", scale=0.3, rate=0.3, seeds=20),
    Setting("a fifth of the rate, 5,000 updates", rate=0.05, steps=5000),
    Setting("3,000 updates", steps=3000),
    Setting("uniform classes, 3,000 updates", UNIFORM, steps=3000),
    Setting("d = 3, 3,000 updates, 20 seeds", d=3, steps=3000, seeds=20),
)

_CONTEXTS: dict[str, Any] = dict(targets="distribution", optimiser="Adam", rate=0.05, steps=550)
_BATCHES: dict[str, Any] = dict(
    targets="distribution", optimiser="Adam", rate=0.03, batch=128, strength=2.0, steps=1500
)
LARGE = (
    Large("one class, Zipf, GD"),
    Large("one class, Zipf, GD, d = 16", d=16),
    Large("one class, Zipf, GD, d = 64", d=64),
    Large("one class, uniform, GD", skew=0.0),
    Large("one class, Zipf, GD, start 0.01", scale=0.01),
    Large("one class, Zipf, GD, start 1", scale=1.0, rate=0.02),
    Large("one class, Zipf, GD, weight decay", weight_decay=0.1),
    Large("one class, Zipf, GD, batches of 256", rate=0.02, batch=256, steps=300),
    Large("one class, Zipf, Adam", optimiser="Adam", rate=0.01),
    Large("distributions, Zipf, GD", **{**_CONTEXTS, "optimiser": "GD", "steps": 1000}),
    Large("distributions, Zipf, Adam", **_CONTEXTS),
    Large("distributions, Zipf, Adam, d = 16", **_CONTEXTS, d=16),
    Large("distributions, Zipf, Adam, d = 64", **_CONTEXTS, d=64),
    Large("distributions, Zipf, Adam, start 1", **_CONTEXTS, scale=1.0),
    Large("distributions, Zipf, Adam, weight decay", **_CONTEXTS, weight_decay=0.1),
    Large("distributions, uniform, Adam", **_CONTEXTS, skew=0.0),
    Large("distributions, equal latent strengths, Adam", **_CONTEXTS, decay=0.0),
    Large("distributions of 8 draws, Adam", **_CONTEXTS, tokens=8),
    Large("batches of 128, Adam, cosine", **_BATCHES, cosine=True),
    Large("batches of 128, Adam, constant rate", **_BATCHES),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, writes table and numbers, draws."""
    given = make_parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    begin = time.process_time()
    shown = {setting.name: train(setting) for setting in SETTINGS}
    numbers: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "small": [measured(setting, shown.get(setting.name) or train(setting)) for setting in (*SETTINGS, *CONDITIONS)],
        "large": [],
    }
    numbers["seconds_small"] = time.process_time() - begin
    for setting in LARGE if given.large else ():
        numbers["large"].append(measured_large(setting))
        print(f"{setting.name}: {numbers['large'][-1]['seconds']:.1f} s", flush=True)
    numbers["seconds"] = time.process_time() - begin
    folder = Path(given.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bottleneck.json").write_text(json.dumps(rounded(numbers), ensure_ascii=False) + "\n")
    table = render(numbers)
    (folder / "bottleneck.md").write_text(table)
    draw(numbers, SETTINGS, shown, folder / "bottleneck.png")
    print(f"\n{table}\n{folder}/bottleneck.md, .json, .png")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--output_dir", default="runs/bottleneck", help="folder of table, numbers and figure")
    parser.add_argument("--large", action="store_true", help="train the model with 1,024 classes too")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    return parser


def measured(setting: Setting, paths: Paths) -> dict[str, Any]:
    """What the features of each seed did, in both conventions."""
    found = {
        name: [dataclasses.asdict(turns(curve)) for curve in rankme_curves(paths.features, centred)]
        for name, centred in (("uncentred", False), ("centred", True))
    }
    return {**dataclasses.asdict(setting), **found}


def measured_large(setting: Large) -> dict[str, Any]:
    """Curves and phases of each seed."""
    begin = time.process_time()
    runs = [train_large(setting, seed) for seed in range(setting.seeds)]
    return {
        **dataclasses.asdict(setting),
        "seconds": time.process_time() - begin,
        "curves": [{key: [row[key] for row in rows] for key in rows[0]} for rows in runs],
        "phases": [phases_of(rows, "rankme") for rows in runs],
        "phases_uncentred": [phases_of(rows, "rankme_uncentred") for rows in runs],
    }


def phases_of(rows: Sequence[Mapping[str, float]], key: str) -> list[dict[str, Any]]:
    """The phases of one curve, by the rule of `geomcallbacks.phases`."""
    steps, values = ([row[name] for row in rows] for name in ("step", key))
    names = ("name", "start", "end", "rankme_start", "rankme_end")
    return [{name: getattr(phase, name) for name in names} for phase in find_phases(steps, values, from_scratch=True)]


def rounded(values: Any) -> Any:
    """The same with seven significant digits, which differ between machines no more than they must."""
    if isinstance(values, float):
        return float(f"{values:.7g}")
    if isinstance(values, Mapping):
        return {key: rounded(value) for key, value in values.items()}
    return [rounded(value) for value in values] if isinstance(values, list | tuple) else values


if __name__ == "__main__":
    main()
