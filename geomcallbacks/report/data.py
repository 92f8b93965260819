"""Reading of runs: record files, what stands beside them, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.record import read_lines, read_records, record_file
from geomcallbacks.report.loss import find_loss, read_loss
from geomcallbacks.report.run import Record, Run
from geomcallbacks.statistics import finite


def read_runs(paths: Sequence[str | Path], losses: Sequence[str | Path] = ()) -> list[Run]:
    """Read one or several runs.

    Args:
        paths: record files, or folders of runs. What behaviour was measured stands beside: of `geometry-2.jsonl` in
            `behaviour-2.jsonl`.
        losses: a file of training loss for each run, in place of what `find_loss` finds.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file holds no measurement, or `losses` are not one for each run.
    """
    if losses and len(losses) != len(paths):
        raise ValueError(f"--loss was given {len(losses)} times for {len(paths)} runs: give one for each, in order")
    files = [record_file(path) for path in paths]
    given: list[Path | None] = [Path(loss) for loss in losses] or [None] * len(files)
    return [_read_run(file, name, loss) for file, name, loss in zip(files, _names(files), given, strict=True)]


def _read_run(file: Path, name: str, loss: Path | None) -> Run:
    headers = [line for line in read_lines(file) if line.get("kind") == "header"]
    lines = read_records(file)
    for header in headers:
        if not isinstance(header.get("settings") or {}, dict):
            raise ValueError(f"{file} has a header whose settings are {header['settings']!r}, and must be a mapping")
    records = [line for line in lines if {"probe", "layer"} <= line.keys()]
    for record in records:
        for field, value, wanted in _faults(record):
            raise ValueError(f"{file}, step {record['step']}: {field} is {value!r:.80}, and must be {wanted}")
    found = find_loss(file) if loss is None else read_loss(loss)
    run = Run(name, file, records, _behaviour(file, lines), found, headers[-1] if headers else {})
    if not records or not run.metric("rankme"):
        raise ValueError(f"{file} holds no value of rankme: give the geometry.jsonl of a run that has measured")
    return run


def _faults(record: Record) -> Iterator[tuple[str, Any, str]]:
    """Fields that `write_report` would stumble over, or draw as another number: name, value, what it must be."""
    for name in (*METRIC_NAMES, "tokens"):
        if record.get(name) is not None and finite(record[name]) is None:
            yield name, record[name], "a number or null"
    for name in ("n", "d"):
        if not isinstance(record.get(name), int):
            yield name, record.get(name), "a whole number"
    if not _is_pair(record.get("alpha_window")):
        yield "alpha_window", record.get("alpha_window"), "a pair of ranks"
    spans = record.get("intervals") or {}
    if not isinstance(spans, dict):
        yield "intervals", spans, "a mapping of names to pairs"
        return
    for name, value in spans.items():
        if value is not None and not _is_pair(value):
            yield f"the interval of {name}", value, "a pair of numbers"


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(finite(part) is not None for part in value)


def _behaviour(file: Path, lines: Sequence[Record]) -> list[dict[str, Any]]:
    """What was measured beside the geometry, by update: in files of the same number, or in the record file itself."""
    rows: dict[int, dict[str, Any]] = {}
    stem = file.stem if "geometry" in file.stem else f"{file.stem}-geometry"
    beside = [file.with_name(stem.replace("geometry", kind) + ".jsonl") for kind in ("behaviour", "intervention")]
    found = [line for other in beside if other != file and other.is_file() for line in read_records(other)]
    for line in (*lines, *found):
        values = {key: value for key, value in line.items() if "/" in key and finite(value) is not None}
        if values:
            rows.setdefault(line["step"], {"step": line["step"]}).update(values)
    return [rows[step] for step in sorted(rows)]


def _names(files: Sequence[Path]) -> list[str]:
    """Names by which runs can be told apart: of the folder, or of the file if it is called after the model."""
    folders = [file.resolve().parent for file in files]
    names = []
    for file, folder in zip(files, folders, strict=True):
        match = re.fullmatch(r"geometry(-(.+))?", file.stem)
        tail = f" ({match[2]})" if match and match[2] else ""
        names.append(folder.name + tail if match else file.stem.removesuffix("-geometry"))
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]
