"""What stage folders hold: numbers at the first and the last update, and whether runs may be compared at all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contrasts.plan import Step, base_step, branches, chain_steps, overtraining_steps
from contrasts.settings import ContrastSettings
from geomcallbacks import read_records
from geomcallbacks.record import record_files
from geomcallbacks.statistics import finite

METRICS = ("rankme", "alpha_req", "top1_share", "top10_share")
#: Numbers of the general probe are compared only where all of these agree.
PROBE_KEYS = ("fingerprint", "n", "d", "alpha_window", "positions", "precision", "layer")
#: Settings in which the runs of two seeds may differ: where they stand and run, not what they compute.
_FREE = frozenset(
    {"seed", "output_dir", "base", "model", "overwrite", "resume", "threads", "report_to", "run_name", "project"}
    | {"disable_tqdm", "use_cpu", "accelerator", "devices", "wandb", "wandb_project", "logging_dir", "logging_steps"}
    | {"save_steps", "save_total_limit"}
)

Numbers = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class StageNumbers:
    """One finished stage.

    Attributes:
        folder: where it stands.
        start, end: numbers at the first and the last update, by `verdicts.Statement.source`.
        probe: what the general probe and its reading were.
        finished: content of finished.json.
        settings: content of settings.json, where there is one.
    """

    folder: Path
    start: Numbers
    end: Numbers
    probe: dict[str, Any]
    finished: dict[str, Any]
    settings: dict[str, Any]


#: A stage by seed; None where the seed has not finished it.
Stage = dict[int, StageNumbers | None]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Everything that was found.

    Attributes:
        stages: what at least one seed has finished, by name.
        overtraining: by seed, a row for each checkpoint that SFT started from, in the order of the tokens.
        missing: what is not finished.
        notes: what a reader should know of the comparison.
        corpus: fingerprint of the corpus.
        times: rows of times.jsonl: how long each command ran.
    """

    stages: dict[str, Stage]
    overtraining: dict[int, list[dict[str, Any]]]
    missing: list[str]
    notes: list[str]
    corpus: str | None
    times: list[dict[str, Any]]


def read_contrast(settings: ContrastSettings) -> Contrast:
    """Read the folder of a contrast.

    Raises:
        ValueError: nothing is finished, or runs differ in corpus, general probe or window of α.
    """
    folder = Path(settings.output_dir)
    bases = [base_step(folder, seed) for seed in settings.seeds]
    steps = [step for base in bases for branch in branches(base, settings) for step in branch]
    stages = read_stages([step for step in steps if "/" not in step.name])
    if not stages:
        raise ValueError(f"output_dir={str(folder)!r}: no stage is finished there; leave out --only_read to run them")
    corpora = {base.folder: _json(base.folder / "corpus" / "manifest.json").get("fingerprint") for base in bases}
    corpora = {place: corpus for place, corpus in corpora.items() if corpus is not None}
    refuse_different("corpus fingerprint", corpora)
    overtraining = {}
    for base in filter(Step.is_finished, bases if settings.overtraining else ()):
        curve = overtraining_steps(base, settings.overtraining)
        if all(map(Step.is_finished, curve.values())):  # slopes over fewer checkpoints would not compare
            overtraining[base.seed] = _overtraining_rows(base, curve)
    return Contrast(
        stages,
        overtraining,
        missing=[f"seed {step.seed}: {step.name}" for step in (*bases, *steps) if not step.is_finished()],
        notes=[note for name, stage in stages.items() for note in _different_settings(name, stage)],
        corpus=next(iter(corpora.values()), None),
        times=_json_lines(folder / "times.jsonl"),
    )


def read_run(folder: Path) -> dict[str, Stage]:
    """Read sft/, dpo/ and grpo/ of a folder, or of its seed-S/ folders.

    Raises:
        ValueError: none of them is finished, or their general probes differ.
    """
    roots = {int(path.name.removeprefix("seed-")): path for path in sorted(folder.glob("seed-*"))} or {0: folder}
    stages = read_stages([step for seed, root in roots.items() for step in chain_steps(root, seed)])
    if not stages:
        raise ValueError(f"real={str(folder)!r}: none of sft/, dpo/, grpo/ is finished there; run them first")
    return stages


def read_stages(steps: Sequence[Step]) -> dict[str, Stage]:
    """Read those of the steps that are finished, by name, in the order of the steps.

    Raises:
        ValueError: their general probes, or how they were read, differ.
    """
    found = {(step.name, step.seed): read_stage(step.folder) for step in steps if step.is_finished()}
    for key in PROBE_KEYS:
        refuse_different(f"{key} of the general probe", {stage.folder: stage.probe[key] for stage in found.values()})
    seeds, names = (dict.fromkeys(getattr(step, field) for step in steps) for field in ("seed", "name"))
    stages = {name: {seed: found.get((name, seed)) for seed in seeds} for name in names}
    return {name: stage for name, stage in stages.items() if any(stage.values())}


def read_stage(folder: Path) -> StageNumbers:
    """Read a finished stage: the records of its first and its last update.

    A number that was not measured at that update is missing; that of another update never stands for it.

    Raises:
        FileNotFoundError: there are no records.
        ValueError: the general probe was not measured at both ends of the stage, or a probe changed in between.
    """
    geometry, behaviour = (read_records(newest(folder, stem)) for stem in ("geometry", "behaviour"))
    crossed = read_records(newest(folder, "crossed")) if (folder / "crossed.jsonl").is_file() else []
    finished, rollouts = _json(folder / "finished.json"), _json(folder / "rollouts.json")
    measured = [record["step"] for record in geometry if record["probe"] == "general"]
    last = finished.get("updates", max(measured, default=0))
    if not measured or not min(measured) == 0 < max(measured) == last:
        raise ValueError(
            f"{folder}: the probe 'general' was measured at the updates {measured}, the stage ran from 0 to {last}; "
            f"the log says why: run the stage again with --overwrite True"
        )
    starts, ends = ({row["probe"]: row for row in geometry if row["step"] == step} for step in (0, last))
    for label in starts.keys() & ends.keys():
        for key in PROBE_KEYS:
            values = {"update 0": starts[label].get(key), f"update {last}": ends[label].get(key)}
            refuse_different(f"{key} of the probe {label!r} in {folder}", values)

    def numbers(step: int, when: str) -> Numbers:
        found = {f"many/{key}": finite(value) for key, value in rollouts.get(when, {}).items()}
        for source, records in (("geometry", geometry), ("crossed", crossed)):
            for row in (row for row in records if row["step"] == step):
                found |= {f"{source}/{row['probe']}/{metric}": row.get(metric) for metric in METRICS}
        for row in (row for row in behaviour if row["step"] == step):
            found |= {f"behaviour/{key}": value for key, value in row.items() if "/" in key}
        return found

    return StageNumbers(
        folder,
        start=numbers(0, "start"),
        end=numbers(last, "end"),
        probe={key: starts["general"].get(key) for key in PROBE_KEYS},
        finished=finished,
        settings=_json(folder / "settings.json"),
    )


def newest(folder: Path, stem: str) -> Path:
    """Return the record file of the latest start at update 0: an interrupted one before it leaves its own behind."""
    files = record_files(folder, stem)
    if not files:
        missing = folder / f"{stem}.jsonl"
        raise FileNotFoundError(f"{missing} does not exist, though {folder} is finished; run the stage again")
    return files[-1]


def refuse_different(what: str, values: Mapping[Any, Any]) -> None:
    """Raise `ValueError` where the values differ, naming two that do."""
    for place, value in values.items():
        known, expected = next(iter(values.items()))
        if value != expected:
            raise ValueError(
                f"{what} is {expected!r} ({known}) and {value!r} ({place}): such runs are not compared; run one of "
                f"them again, with the same Python and the same configuration"
            )


def _overtraining_rows(base: Step, curve: Mapping[int, Step]) -> list[dict[str, Any]]:
    bases = {record["step"]: record for record in read_records(newest(base.folder, "geometry"))}
    rows = []
    for update, step in curve.items():
        end, record = read_stage(step.folder).end, bases[update]
        row = {"update": update, "tokens": record.get("tokens"), "rankme": record.get("rankme")}
        row |= {"id": end.get("behaviour/id/loss"), "ood": end.get("behaviour/ood/loss")}
        if unknown := [key for key, value in row.items() if value is None]:
            raise ValueError(f"{step.folder} has no {', '.join(unknown)}: run it again, or give --overtraining 0")
        rows.append(row | {"log10_tokens": math.log10(record["tokens"])})
    return rows


def _different_settings(name: str, stage: Stage) -> list[str]:
    (first, expected), *others = ((seed, numbers.settings) for seed, numbers in stage.items() if numbers is not None)
    return [
        f"{name}: {key} is {expected.get(key)!r} for seed {first} and {settings.get(key)!r} for seed {seed}"
        for seed, settings in others
        for key in sorted((expected.keys() | settings.keys()) - _FREE)
        if expected.get(key) != settings.get(key)
    ]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
