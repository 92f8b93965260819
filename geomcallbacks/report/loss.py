"""The training loss that stands beside a record file, wherever the trainer left it."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

from geomcallbacks.record import record_files

Loss = list[tuple[int, float]]


def find_loss(file: Path) -> Loss:
    """Training loss that stands beside a record file; empty where none does.

    Looked for: `loss/from_*/metrics.csv`, one for each start of a run (recipes); `metrics.csv`, and in
    `lightning_logs/version_0` (Lightning's CSVLogger); `trainer_state.json`, there or in the latest `checkpoint-N`.
    """
    latest = [other.name for other in record_files(file.parent)[-1:]]
    if latest not in ([], ["geometry.jsonl"], [file.name]):
        return []  # a later run in this folder: the loss that stands here is its
    starts = sorted(file.parent.glob("loss/from_*/metrics.csv"), key=lambda found: _tail(found.parent))
    points: Loss = []
    for index, found in enumerate(starts):
        end = _tail(starts[index + 1].parent) if index + 1 < len(starts) else math.inf  # from there trained again
        points += [point for point in read_loss(found) if point[0] <= end]
    checkpoints = sorted(file.parent.glob("checkpoint-*/trainer_state.json"), key=lambda found: _tail(found.parent))
    others = [file.parent / "metrics.csv", file.parent / "trainer_state.json", *checkpoints[::-1]]
    others.append(file.parent / "lightning_logs" / "version_0" / "metrics.csv")
    beside = (read_loss(other) for other in others if other.is_file())
    return sorted(points or next(filter(None, beside), []))


def read_loss(path: Path) -> Loss:
    """Training loss from Lightning's `metrics.csv`, Trainer's `trainer_state.json`, or JSON Lines of `step` and `loss`.

    Lightning writes the loss of update s at s - 1; here it stands at s.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of these.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a metrics.csv or trainer_state.json")
    try:
        text, shift = path.read_text(encoding="utf-8"), 0
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(text.splitlines()))
            shift = 1
        elif path.suffix == ".json":
            rows = json.loads(text)["log_history"]
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        names = ("loss", "train_loss", "train/loss", "train_loss_step")
        found = [
            (row["step"], next((row[name] for name in names if row.get(name) not in (None, "")), None)) for row in rows
        ]
        points = [(int(step) + shift, float(loss)) for step, loss in found if loss is not None]
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} gives no training loss ({error!r}): columns `step` and `loss` are read") from error
    return sorted(point for point in points if math.isfinite(point[1]))


def _tail(path: Path) -> int:
    """The number at the end of `checkpoint-123` or `from_123`; -1 without one."""
    digits = re.search(r"\d+$", path.name)
    return int(digits[0]) if digits else -1
