"""GeometryRecord, and how the JSON Lines file that a run leaves behind is read.

The file is only ever appended to. Each start of a run writes a header line, each measurement one line for every
(probe, layer); a missing value is ``null`` with a reason, never NaN. After a crash all whole lines can be read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.reading.weights import TRAINING

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
#: Stated in every record: which of the competing definitions its numbers follow.
CONVENTION = "eigenvalues of the centred covariance over n-1, eps=0, no truncation"


@dataclass(frozen=True)
class GeometryRecord:
    """The geometry of one layer on one probe after `step` updates.

    Attributes:
        step: optimiser updates that the measured weights have received.
        tokens: training tokens seen, where known.
        probe, fingerprint: label and fingerprint of the probe.
        layer, module: label of the layer, and the submodule whose output (or input, for layer 0) was read.
        positions: which positions of a row were read.
        n, d: rows and columns of the feature matrix.
        metrics: value of each of `METRIC_NAMES`, None where there is none.
        reasons: why a value is missing, by metric.
        alpha_window: ranks over which α was fitted.
        convention: which definitions the numbers follow.
        precision: arithmetic of the forward pass: "fp32", "bf16", "fp16" or another dtype's name.
        weights: which were measured: those of "training", or an "average (…)" of them; in brackets, whose.
        storage: how quantised weights are stored, such as "nf4"; None: as numbers that are computed with.
        batch_size: rows of the probe that went through the model together.
        seconds_forward, seconds_spectrum: wall time of the probe's forward pass and of spectrum and metrics. The
            forward pass serves all layers at once; each of their records carries the whole.
        intervals: 95 % interval of each metric, where asked for.
        notes: what went otherwise than asked, such as a halved batch.
        phase: in which the run is by the curve so far (`geomcallbacks.phases`); None where that shows none yet.
        news: in words, that this measurement has shown another phase to begin, or one not to have lasted; not part of
            the line.
        eigenvalues: (r,) descending float64 on the CPU; in the file, `spectrum` names where they are kept.
    """

    step: int
    tokens: int | None
    probe: str
    fingerprint: str
    layer: str
    module: str
    positions: str | int
    n: int
    d: int
    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]
    alpha_window: tuple[int, int]
    precision: str
    batch_size: int
    seconds_forward: float
    seconds_spectrum: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    phase: str | None = None
    news: str | None = None
    convention: str = CONVENTION
    weights: str = TRAINING
    storage: str | None = None
    eigenvalues: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def curve(self) -> str:
        """Names the curve that the record is a point of, `<probe>/<layer>`."""
        return f"{self.probe}/{self.layer}"

    def to_dict(self) -> dict[str, Any]:
        """A flat mapping, metrics among the other fields: a line of the file, or a row of a table."""
        flat = {key: value for key, value in vars(self).items() if key not in ("metrics", "news", "eigenvalues")}
        flat["alpha_window"] = list(self.alpha_window)
        return flat | {name: self.metrics.get(name) for name in METRIC_NAMES}


def record_files(folder: Path, stem: str = "geometry") -> list[Path]:
    """The record files in a run's folder, in the order of their runs: `geometry.jsonl`, `geometry-2.jsonl`, …"""
    files = run_files(folder / f"{stem}.jsonl") if folder.is_dir() else []
    return [file for file in files if file.is_file()]


def record_file(path: str | Path) -> Path:
    """The file `path`, or of a run's folder the record file of its latest start from update 0.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if files := record_files(path):
        return files[-1]
    wrong = "holds no geometry.jsonl" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"{path} {wrong}: give the geometry.jsonl of a run, or its folder")


def probes_folder(path: Path) -> Path:
    """Where the probes of a record file are kept, each called by its fingerprint.

    `Trainer.push_to_hub` leaves out what begins with an underscore: held-out text is not published with the model.
    """
    return path.with_name(f"_{path.stem}-probes")


def spectra_folder(path: Path) -> Path:
    """Where the eigenspectra of a record file are kept."""
    return path.with_name(f"{path.stem}-spectra")


@overload
def read_records(path: str | Path, *, as_frame: Literal[False] = False) -> list[dict[str, Any]]: ...
@overload
def read_records(path: str | Path, *, as_frame: Literal[True]) -> pd.DataFrame: ...


def read_records(path: str | Path, *, as_frame: bool = False) -> list[dict[str, Any]] | pd.DataFrame:
    """The measurements in a record file, in the order of their updates.

    A torn last line is dropped. Where a run was resumed from a checkpoint, what it had recorded beyond that
    checkpoint before is dropped too: those weights are no longer part of the run. So is all of an attempt that was
    given up, where the run began again.

    Args:
        path: the file.
        as_frame: give a pandas DataFrame with a row for each measurement instead of a list of dicts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line before the last is not JSON, the file follows a later schema than this version knows, or a
            step is no number of updates.
    """
    records: list[dict[str, Any]] = []
    for line in read_lines(path):
        if line.get("kind") == "header":
            schema, resumed_from = line.get("schema", 0), line.get("resumed_from")
            if not _is_count(schema):
                raise ValueError(f"{path} has a header of schema {schema!r}, which is no number: it was changed")
            if schema > SCHEMA:
                raise ValueError(f"{path} follows schema {schema}, this version reads {SCHEMA}: upgrade")
            if line.get("attempt", 1) != 1:  # the run has begun again at update 0
                records = []
            if resumed_from is not None:
                if not _is_count(resumed_from):
                    raise ValueError(f"{path} has a header with resumed_from={resumed_from!r}, which is no update")
                records = [record for record in records if record["step"] <= resumed_from]
        elif line.get("kind") == "record":
            if not _is_count(step := line.get("step")):
                place = f"{path}, record {len(records) + 1}"
                raise ValueError(f"{place}: step is {step!r}, and must be a number of updates from 0")
            records.append({key: value for key, value in line.items() if key != "kind"})
    if not as_frame:
        return records
    import pandas as pd

    return pd.DataFrame(records)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Every whole line of a record file, headers and skips included. See `read_records` for what is raised."""
    lines: list[dict[str, Any]] = []
    broken: tuple[int, Exception] | None = None
    for number, text in enumerate(Path(path).expanduser().read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
            if not isinstance(line, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            broken = broken or (number, error)
            # A torn line begins as every line does; a crash of the system may have put zeros in its place.
            if not text.lstrip(b"\0").startswith(b"{") and text.strip(b"\0"):
                raise _not_a_record(path, *broken) from error
            continue
        # A broken line was torn if it was its process's last: the next whole one is then another process's header.
        if broken is not None and line.get("kind") != "header":
            raise _not_a_record(path, *broken) from broken[1]
        broken = None
        lines.append(line)
    return lines


def read_spectra(path: str | Path, record: Mapping[str, Any]) -> torch.Tensor:
    """The eigenvalues (r,) that were kept with a record of the file `path`.

    Raises:
        ValueError: no spectrum was kept with this record, or not in a file of the run's folder that holds it.
        FileNotFoundError: the file has gone.
    """
    step, kept = record.get("step"), record.get("spectrum")
    if not kept:
        raise ValueError(f"no spectrum was kept at step {step}: run with spectra=True")
    if not (isinstance(kept, list | tuple) and len(kept) == 2 and all(isinstance(part, str) for part in kept)):
        raise ValueError(f"{path}, step {step}: spectrum is {kept!r}, and must be a file and the key in it")
    folder, (file, key) = Path(path).expanduser().resolve().parent, kept
    if "\0" in file or not (folder / file).resolve().is_relative_to(folder):
        raise ValueError(f"{path}, step {step}: the spectrum's file {file!r} is outside the folder of the records")
    if not (folder / file).is_file():  # a named pipe would be waited for
        raise FileNotFoundError(f"{folder / file}, which holds the spectrum of step {step}, is no file there")
    try:
        values = load_file(str(folder / file))[key]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{folder / file} holds no spectrum {key!r}, or was torn: {error}") from error
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(f"{folder / file} holds {key!r} of shape {tuple(values.shape)}, which is no spectrum")
    return values


def _not_a_record(path: str | Path, number: int, error: Exception) -> ValueError:
    return ValueError(f"{path}, line {number}, is not a record: {error}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def numbered(path: Path, number: int) -> Path:
    """The file of the run of that number, `path` being the first's."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def run_files(path: Path) -> list[Path]:
    """`path`, whether or not it stands, and the files of later runs beside it, in the order of their numbers."""
    pattern = re.compile(re.escape(path.stem) + r"-(\d+)" + re.escape(path.suffix))
    found = {int(match[1]) for match in map(pattern.fullmatch, os.listdir(path.parent)) if match}
    return [numbered(path, number) for number in sorted({1, *found})]
