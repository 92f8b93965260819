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
import yaml
from tractable.figure import draw
from tractable.large import Large, train_large
from tractable.model import Paths, Setting, rankme_curves, train, turns
from tractable.table import render

from geomcallbacks.phases import find_phases

CONFIG = Path(__file__).parent / "configs" / "bottleneck.yaml"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML file of what is trained")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/bottleneck"), help="folder of what is written")
    parser.add_argument("--large", action="store_true", help="train the model with 1,024 classes too")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write table and numbers, draw."""
    given = make_parser().parse_args(arguments)
    config = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    shown, conditions = ([Setting(**row) for row in config[part] or ()] for part in ("shown", "conditions"))
    torch.set_num_threads(given.threads)
    begin = time.process_time()
    paths = {setting.name: train(setting) for setting in shown}
    numbers: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "small": [measured(setting, paths.get(setting.name) or train(setting)) for setting in (*shown, *conditions)],
        "large": [],
    }
    numbers["seconds_small"] = time.process_time() - begin
    for row in config["large"] if given.large else ():
        numbers["large"].append(measured_large(Large(**row)))
        print(f"{row['name']}: {numbers['large'][-1]['seconds']:.1f} s", flush=True)
    numbers["seconds"] = time.process_time() - begin
    given.output_dir.mkdir(parents=True, exist_ok=True)
    # Seven digits, which differ between machines no more than they must.
    rounded = json.loads(json.dumps(numbers), parse_float=lambda text: float(f"{float(text):.7g}"))
    (given.output_dir / "bottleneck.json").write_text(json.dumps(rounded, ensure_ascii=False) + "\n")
    table = render(numbers)
    (given.output_dir / "bottleneck.md").write_text(table)
    large = [row for row in numbers["large"] if row["name"] in config["large_shown"]]
    draw([(setting, paths[setting.name]) for setting in shown], large, given.output_dir / "bottleneck.png")
    print(f"\n{table}\n{given.output_dir}/bottleneck.md, .json, .png")


def measured(setting: Setting, paths: Paths) -> dict[str, Any]:
    """Return what the features of each seed did, in both conventions."""
    curves = {"uncentred": rankme_curves(paths.features, False), "centred": rankme_curves(paths.features, True)}
    found = {kind: [dataclasses.asdict(turns(curve)) for curve in seeds] for kind, seeds in curves.items()}
    return {**dataclasses.asdict(setting), **found}


def measured_large(setting: Large) -> dict[str, Any]:
    """Return curves and phases of each seed."""
    begin = time.process_time()
    runs = [train_large(setting, seed) for seed in range(setting.seeds)]
    curves = [{key: [row[key] for row in rows] for key in rows[0]} for rows in runs]
    return {
        **dataclasses.asdict(setting),
        "seconds": time.process_time() - begin,
        "curves": curves,
        "phases": [phases_of(curve, "rankme") for curve in curves],
        "phases_uncentred": [phases_of(curve, "rankme_uncentred") for curve in curves],
    }


def phases_of(curve: Mapping[str, Sequence[float]], key: str) -> list[dict[str, Any]]:
    """Return the phases of one curve, by the rule of `geomcallbacks.phases`."""
    return [phase.to_dict() for phase in find_phases(curve["step"], curve[key], from_scratch=True)]


if __name__ == "__main__":
    main()
