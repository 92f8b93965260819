"""What a run's folder says of how it was measured live, so that its checkpoints are measured in the same way."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomcallbacks.probe import ProbeSet
from geomcallbacks.record import probes_folder, read_lines, read_records, record_files
from geomcallbacks.trace.checkpoints.steps import parse_name

#: Settings of a header that say what a number means, by their names in `ReadingSettings`. Not `module`, which is a way
#: through the training loop's own wrapper.
_SETTINGS = ("layers", "positions", "alpha_window", "batch_size", "intervals")


@dataclass(frozen=True)
class Recorded:
    """How a run was measured; without arguments, that of none.

    Attributes:
        file: that states it.
        settings: arguments of `ReadingSettings`.
        precision: arithmetic of the live forward pass, as its records name it; None: there is no run.
        fingerprints: of its probes, by label.
        tokens: training tokens by step, where recorded.
        batch_sizes: rows that went through the model together, by step and probe: fewer where memory had run out.
        records: the records themselves, by step, probe and layer.
        from_scratch: whether it began from random weights, where it was told.
    """

    file: Path = Path()
    settings: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[int, int] = field(default_factory=dict)
    batch_sizes: Mapping[tuple[int, str], int] = field(default_factory=dict)
    records: Mapping[tuple[int, str, str], Mapping[str, Any]] = field(default_factory=dict)
    from_scratch: bool | None = None

    def kept_probes(self) -> dict[str, ProbeSet]:
        """Return the probes that are kept, beside the records or in the folder under any name; warn where some are not.

        Raises:
            ValueError: none is kept.
        """
        found: dict[str, ProbeSet] = {}
        before = self.file.with_name(f"{self.file.stem}-probes")  # as it was called up to 0.1
        folders = (probes_folder(self.file), before, self.file.parent)
        for file in [file for folder in folders for file in sorted(folder.glob("*.safetensors")) if file.is_file()]:
            if self.fingerprints.keys() <= found.keys():
                break
            with suppress(Exception):  # weights, say, which are no probe
                probe = ProbeSet.load(file)
                found |= {label: probe for label, wanted in self.fingerprints.items() if wanted == probe.fingerprint}
        missing = sorted(self.fingerprints.keys() - found.keys())
        if missing:
            names = ", ".join(f"{label!r} ({self.fingerprints[label]})" for label in missing)
            text = f"the run was measured on probe {names}, which is not kept in its folder"
            if not found:
                raise ValueError(f"{text}: give one with --probe")
            warnings.warn(f"{text}: only the others are measured", stacklevel=4)
        return found


def read_recorded(folder: Path) -> Recorded:
    """Return what the record file in a run's folder says; nothing without one, or with one that holds nothing yet.

    Args:
        folder: the run's, that of its checkpoints, or that of one of them.
    """
    files = recorded_files(folder)
    for file in files:  # the last start may have ended before it measured
        headers = [line for line in read_lines(file) if isinstance(line.get("settings"), dict)]
        if headers and (records := read_records(file)):
            settings, probes = headers[-1]["settings"], headers[-1].get("probes", {})
            return Recorded(
                file,
                {key: settings[key] for key in _SETTINGS if key in settings},
                records[-1]["precision"],
                {label: probe["fingerprint"] for label, probe in probes.items()},
                {record["step"]: record["tokens"] for record in records if record.get("tokens") is not None},
                {(record["step"], record["probe"]): record["batch_size"] for record in records},
                {(record["step"], record["probe"], record.get("layer", "")): record for record in records},
                settings.get("from_scratch"),
            )
    if files:
        text = f"{files[0]} holds no measurement: probe and settings are the defaults where they are not given"
        warnings.warn(text, stacklevel=3)
    return Recorded()


def recorded_files(folder: Path) -> list[Path]:
    """Return a run's record files, that of its latest start first: …, `geometry-2.jsonl`, `geometry.jsonl`.

    Args:
        folder: as for `read_recorded`.
    """
    folder = folder.resolve()
    places = [folder]
    if folder.name == "checkpoints" or parse_name(folder.name) is not None:
        places.append(folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent)
    return next((files[::-1] for place in places if (files := record_files(place))), [])
