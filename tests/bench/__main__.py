"""Runs the bench: `make bench`, or `PYTHONPATH=tests:recipes python -m bench --quick --only spectrum`."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

from bench import forward, growth, overhead, positions, spectrum
from bench.section import Section, markdown, save

SECTIONS = ("spectrum", "forward", "overhead", "growth", "positions")
#: Models this small are no faster on two threads, and far slower where other work takes one of them.
ONE_THREAD = ("overhead", "growth", "positions")


def main() -> None:
    """Run the sections asked for, print their tables and write the files."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only: under a minute, and no evidence")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="which sections")
    parser.add_argument("--model", type=Path, help="run folder of recipes/pretrain.py; default: trains one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the files")
    options = parser.parse_args()
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file = options.out / f"bench_{device.type}{'_quick' if options.quick else ''}.json"
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        calls = plan(device, options.quick, options.model, Path(scratch))
        for name in options.only:
            torch.set_num_threads(1 if name in ONE_THREAD else threads)
            before, measured = load(), describe(device)
            section = replace(
                calls[name](), measured=measured | {"load": f"{before} at the start, {load()} at the end"}
            )
            print(f"\n{markdown(section)}", flush=True)
            save(file, {name: section})
    print(f"\n{file} and .md")


def plan(device: torch.device, quick: bool, model: Path | None, scratch: Path) -> dict[str, Callable[[], Section]]:
    """Return each section as a call of its own."""
    cases, start = forward.cases(device.type == "cuda"), growth.base(device.type == "cuda")
    if quick:
        cases = [replace(case, rows=2, length=64) for case in cases[:1]]
        start = growth.Point(n=64, d=64, layers=2, tokens=32)

    def at_positions() -> Section:
        run = model or positions.train(scratch / "run", updates=50 if quick else 2000)
        return positions.positions(device, run, draws=2 if quick else 20)

    return {
        "spectrum": lambda: spectrum.spectrum(device, spectrum.QUICK if quick else spectrum.SHAPES),
        "forward": lambda: forward.forward(device, cases),
        "overhead": lambda: overhead.overhead(device, updates=250 if quick else 5000),
        "growth": lambda: growth.growth(device, start, rounds=1 if quick else 3),
        "positions": at_positions,
    }


def describe(device: torch.device) -> dict[str, object]:
    """Return when, on what, with what and how."""
    cpu = f"{os.cpu_count()} CPU cores, {cpu_name()}"
    packages = [f"{name} {version(name)}" for name in ("torch", "transformers", "numpy", "scikit-learn")]
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def cpu_name() -> str:
    """Return what Linux calls the processor."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def load() -> str:
    """Return how many threads ran or wanted to, this program's included, on average over the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
