"""What a report is made of: a run's record files, and the training loss that stands beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.phases import Phase, find_phases
from geomcallbacks.record import read_lines, read_records, read_spectra, record_files
from geomcallbacks.report.loss import Loss, find_loss, read_loss

Record = Mapping[str, Any]

#: Ends of keys that belong to another number: its 95 % interval, and how much it was measured on.
_BESIDE = re.compile(r"/(low|high|n)$|_(low|high)$")


@dataclass(frozen=True)
class Point:
    """A number at an update, with its 95 % interval where there is one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Run:
    """A run, as its files tell it.

    Attributes:
        name: under which it is shown.
        file: record file of the geometry.
        records: of the geometry, every probe and layer.
        behaviour: one mapping for each update at which behaviour was measured; keys such as "cloze_near/accuracy".
        loss: (updates, training loss) in order; may be empty.
        header: last header of the record file: settings, versions, probes.
    """

    name: str
    file: Path
    records: list[dict[str, Any]]
    behaviour: list[dict[str, Any]]
    loss: Loss
    header: dict[str, Any]

    @cached_property
    def probes(self) -> list[str]:
        """Labels of the probes, in the order of the file."""
        return list(dict.fromkeys(str(record["probe"]) for record in self.records))

    @cached_property
    def layers(self) -> list[str]:
        """Labels of the layers, from the embedding upwards where the labels say so."""
        labels = list(dict.fromkeys(str(record["layer"]) for record in self.records))
        numbers = [re.fullmatch(r"layer(\d+)", label) for label in labels]
        return sorted(labels, key=lambda label: int(label[5:])) if all(numbers) else labels

    def curve(self, probe: str | None = None, layer: str | None = None) -> list[dict[str, Any]]:
        """Records of one probe and layer in the order of updates; by default of the first probe and last layer."""
        wanted = (self.probes[0] if probe is None else probe, self.layers[-1] if layer is None else layer)
        found = {r["step"]: r for r in self.records if (str(r["probe"]), str(r["layer"])) == wanted}
        return [found[step] for step in sorted(found)]

    def metric(self, name: str, probe: str | None = None, layer: str | None = None) -> list[Point]:
        """A metric of the geometry along the run."""
        rows = [row for row in self.curve(probe, layer) if number(row.get(name)) is not None]
        spans = [(row.get("intervals") or {}).get(name) or (None, None) for row in rows]
        return [Point(row["step"], float(row[name]), *span) for row, span in zip(rows, spans, strict=True)]

    def number(self, key: str) -> list[Point]:
        """A number of behaviour along the run. Its interval: `key_low`, or `name/low` of the first `name/…`."""
        group = key.partition("/")[0] + "/"
        own = next((other for other in self.keys if other.startswith(group)), None) == key
        low, high = ([f"{key}_{side}"] + [f"{group}{side}"] * own for side in ("low", "high"))
        rows = [row for row in self.behaviour if number(row.get(key)) is not None]
        return [Point(row["step"], float(row[key]), _first(row, low), _first(row, high)) for row in rows]

    @cached_property
    def keys(self) -> list[str]:
        """Of the numbers of behaviour, without those that only state an interval or a count."""
        keys = dict.fromkeys(key for row in self.behaviour for key, value in row.items() if number(value) is not None)
        return [key for key in keys if "/" in key and not _BESIDE.search(key)]

    @cached_property
    def phases(self) -> list[Phase]:
        """Phases of the default curve, as the run itself says whether it starts from random weights."""
        return self.phases_of()

    def phases_of(self, probe: str | None = None, layer: str | None = None) -> list[Phase]:
        """Phases of one probe and layer."""
        rows = self.curve(probe, layer)
        rankme, alpha = ([number(row.get(name)) for row in rows] for name in ("rankme", "alpha_req"))
        from_scratch = (self.header.get("settings") or {}).get("from_scratch")
        return find_phases([row["step"] for row in rows], rankme, alpha, from_scratch=from_scratch)

    @cached_property
    def last(self) -> int:
        """The largest number of updates of anything there is to draw."""
        return max(1, *self._steps)

    @cached_property
    def first(self) -> int:
        """The smallest number of updates that has a logarithm."""
        return min((step for step in self._steps if step > 0), default=1)

    @property
    def starts(self) -> bool:
        """Whether anything was measured at update 0."""
        return 0 in self._steps

    @cached_property
    def _steps(self) -> set[int]:
        return {row["step"] for row in (*self.records, *self.behaviour)} | {update for update, _ in self.loss}

    def spectrum(self, record: Record) -> list[float] | None:
        """Eigenvalues that were kept with a record, descending; None where they were not, or have gone."""
        if not record.get("spectrum"):
            return None
        try:
            return [float(value) for value in read_spectra(self.file, record)]
        except (OSError, ValueError):
            return None


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
        raise ValueError(
            f"--loss was given {len(losses)} times for {len(paths)} runs: give one for each, in their order"
        )
    files = [record_file(Path(path)) for path in paths]
    names = _names(files)
    given: list[Path | None] = [Path(loss) for loss in losses] or [None] * len(files)
    return [_read_run(file, name, loss) for file, name, loss in zip(files, names, given, strict=True)]


def record_file(path: Path) -> Path:
    """`path` itself, or the record file of a run's folder: the one of its latest start from update 0.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: give the geometry.jsonl of a run, or its folder")
        return path
    files = record_files(path)
    if not files:
        raise FileNotFoundError(f"{path} holds no geometry.jsonl: give the record file of a run")
    return files[-1]


def turning_points(rankme: Sequence[float]) -> tuple[int, int]:
    """Where RankMe is lowest, and where it is highest from there on.

    Args:
        rankme: values in the order of the updates, at least one.

    Returns:
        Indices of trough and peak; the same index where the curve ends in its lowest value.

    Raises:
        ValueError: there are no values.
    """
    if not rankme:
        raise ValueError("rankme is empty: give the values of at least one measurement")
    trough = min(range(len(rankme)), key=rankme.__getitem__)
    peak = max(range(trough, len(rankme)), key=rankme.__getitem__)
    return trough, peak


def number(value: Any) -> float | None:
    """`value` if it is a finite number; true and false are none, nor is an integer that no float reaches."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _first(row: Record, keys: Sequence[str]) -> float | None:
    return next((found for found in (number(row.get(key)) for key in keys) if found is not None), None)


def _read_run(file: Path, name: str, loss: Path | None) -> Run:
    try:
        headers = [line for line in read_lines(file) if line.get("kind") == "header"]
        lines = read_records(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a record file: {error}") from error
    records = [line for line in lines if {"probe", "layer"} <= line.keys()]
    for record in records:
        _check_record(file, record)
    for header in headers:
        if not isinstance(header.get("settings") or {}, dict):
            raise ValueError(f"{file} has a header whose settings are {header['settings']!r}, and must be a mapping")
    if not any(number(record.get("rankme")) is not None for record in records):
        raise ValueError(f"{file} holds no value of rankme: give the geometry.jsonl of a run that has measured")
    found = find_loss(file) if loss is None else read_loss(loss)
    return Run(name, file, records, _behaviour(file, lines), found, headers[-1] if headers else {})


def _check_record(file: Path, record: Record) -> None:
    """Refuse what `write_report` would stumble over, or draw as another number."""

    def refuse(name: str, value: Any, wanted: str) -> None:
        raise ValueError(f"{file}, step {record['step']}: {name} is {value!r:.80}, and must be {wanted}")

    for name in (*METRIC_NAMES, "tokens"):
        if record.get(name) is not None and number(record[name]) is None:
            refuse(name, record[name], "a number or null")
    for name in ("n", "d"):
        if not isinstance(record.get(name), int):
            refuse(name, record.get(name), "a whole number")
    spans = record.get("intervals") or {}
    if not isinstance(spans, dict):
        refuse("intervals", spans, "a mapping of names to pairs")
    for name, value in spans.items():
        if value is not None and not _is_pair(value):
            refuse(f"the interval of {name}", value, "a pair of numbers")
    if not _is_pair(record.get("alpha_window")):
        refuse("alpha_window", record.get("alpha_window"), "a pair of ranks")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(number(part) is not None for part in value)


def _behaviour(file: Path, lines: Sequence[Record]) -> list[dict[str, Any]]:
    """What was measured beside the geometry, by update: in files of the same number, or in the record file itself."""
    rows: dict[int, dict[str, Any]] = {}
    stem = file.stem if "geometry" in file.stem else f"{file.stem}-geometry"
    beside = [file.with_name(stem.replace("geometry", kind) + ".jsonl") for kind in ("behaviour", "intervention")]
    for line in (
        *lines,
        *(line for other in beside if other != file and other.is_file() for line in read_records(other)),
    ):
        values = {key: value for key, value in line.items() if "/" in key and number(value) is not None}
        if values:
            rows.setdefault(line["step"], {"step": line["step"]}).update(values)
    return [rows[step] for step in sorted(rows)]


def _names(files: Sequence[Path]) -> list[str]:
    """Names of runs by which they can be told apart: of the folder, or of the file if it is called after the model."""
    folders = [file.resolve().parent for file in files]
    names = []
    for file, folder in zip(files, folders, strict=True):
        number, rest = re.fullmatch(r"geometry(-(.+))?", file.stem), file.stem.removesuffix("-geometry")
        names.append((folder.name + (f" ({number[2]})" if number[2] else "")) if number else rest)
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]
