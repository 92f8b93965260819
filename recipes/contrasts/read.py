"""What stage folders hold: numbers at the first and the last update, and whether runs may be compared at all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contrasts.plan import CHAIN, Step, base_step, chain_steps, from_base_steps, overtraining_steps, seed_folder
from geomcallbacks import read_records
from geomcallbacks.record import record_files

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


@dataclasses.dataclass
class StageNumbers:
    """One finished stage.

    Attributes:
        folder: Where it stands.
        start, end: Numbers at the first and the last update, by `verdicts.Statement.source`.
        probe: What the general probe and its reading were.
        crossed: Numbers of {start, end} weights on {start, end} rollouts, where there are.
        finished: Content of finished.json.
        settings: Content of settings.json, where there is one.
    """

    folder: Path
    start: Numbers
    end: Numbers
    probe: dict[str, Any]
    crossed: dict[tuple[str, str], Numbers]
    finished: dict[str, Any]
    settings: dict[str, Any]


@dataclasses.dataclass
class Contrast:
    """Everything that was found.

    Attributes:
        seeds: All seeds that were asked for.
        stages: Finished stages, by name and seed.
        overtraining: By seed, a row for each checkpoint that SFT started from, in the order of the tokens.
        missing: What is not finished.
        notes: What a reader should know of the comparison.
        corpus: Fingerprint of the corpus.
        times: Rows of times.jsonl: how long each command ran.
    """

    seeds: list[int]
    stages: dict[str, dict[int, StageNumbers]]
    overtraining: dict[int, list[dict[str, float]]]
    missing: list[str]
    notes: list[str]
    corpus: str | None
    times: list[dict[str, Any]]


def read_contrast(folder: Path, seeds: Sequence[int], from_base: bool, overtraining: int) -> Contrast:
    """Reads the folder of a contrast.

    Raises:
        ValueError: Nothing is finished, or runs differ in corpus, general probe or window of α.
    """
    found = Contrast(list(seeds), {}, {}, [], [], None, _json_lines(folder / "times.jsonl"))
    corpora: dict[Path, Any] = {}
    for seed in seeds:
        root = seed_folder(folder, seed)
        base = base_step(root, seed)
        corpora[root / "base"] = _json(root / "base" / "corpus" / "manifest.json").get("fingerprint")
        for step in [base, *chain_steps(root, seed), *(from_base_steps(root, seed) if from_base else [])]:
            if not step.finished:
                found.missing.append(f"seed {seed}: {step.name}")
            elif step is not base:
                found.stages.setdefault(step.name, {})[seed] = read_stage(step.folder)
        if overtraining:
            _read_overtraining(found, base, root, overtraining)
    if not found.stages:
        raise ValueError(f"output_dir={str(folder)!r}: no stage is finished there; leave out --only_read to run them")
    refuse_different("corpus fingerprint", {path: value for path, value in corpora.items() if value is not None})
    found.corpus = next((value for value in corpora.values() if value is not None), None)
    refuse_different_probes([numbers for by_seed in found.stages.values() for numbers in by_seed.values()])
    found.notes += [note for name in found.stages for note in _different_settings(name, found.stages[name])]
    return found


def read_run(folder: Path) -> dict[str, dict[int, StageNumbers]]:
    """Reads sft/, dpo/ and grpo/ of a folder, or of its seed-S/ folders; by name and seed.

    Raises:
        ValueError: None of them is finished, or their general probes differ.
    """
    roots = {int(path.name.removeprefix("seed-")): path for path in sorted(folder.glob("seed-*"))} or {0: folder}
    stages: dict[str, dict[int, StageNumbers]] = {}
    for seed, root in roots.items():
        for name in CHAIN:
            if (root / name / "finished.json").is_file():
                stages.setdefault(name, {})[seed] = read_stage(root / name)
    if not stages:
        raise ValueError(f"real={str(folder)!r}: none of sft/, dpo/, grpo/ is finished there; run them first")
    refuse_different_probes([numbers for by_seed in stages.values() for numbers in by_seed.values()])
    return stages


def read_stage(folder: Path) -> StageNumbers:
    """Reads a finished stage: the records of its first and its last update.

    A number that was not measured at that update is missing; that of another update never stands for it.

    Raises:
        FileNotFoundError: There are no records.
        ValueError: A probe was not the same at the first and at the last update.
    """
    geometry = read_records(newest(folder, "geometry"))
    general = [record["step"] for record in geometry if record["probe"] == "general"]
    if not general:
        raise ValueError(f"{folder}: geometry.jsonl has no record of a probe 'general'; run the stage again")
    first, last = min(general), max(general)
    finished = _json(folder / "finished.json")
    if (first, last) != (0, finished.get("updates", last)):
        raise ValueError(
            f"{folder}: the general text was measured from update {first} to {last}, the stage ran from 0 to "
            f"{finished.get('updates', last)}: the log says why; run the stage again with --overwrite True"
        )
    if first == last:
        raise ValueError(f"{folder}: measured at update {first} alone, so nothing has changed; run the stage again")
    starts = {record["probe"]: record for record in geometry if record["step"] == first}
    ends = {record["probe"]: record for record in geometry if record["step"] == last}
    start, end = _many(folder, "start"), _many(folder, "end")
    for label in starts.keys() & ends.keys():
        both = {f"update {first}": starts, f"update {last}": ends}
        for key in PROBE_KEYS:
            values = {update: rows[label].get(key) for update, rows in both.items()}
            refuse_different(f"{key} of the probe {label!r} in {folder}", values)
        for numbers, rows in ((start, starts), (end, ends)):
            numbers |= {f"geometry/{label}/{metric}": rows[label].get(metric) for metric in METRICS}
    for record in read_records(newest(folder, "behaviour")):
        keys = {f"behaviour/{key}": value for key, value in record.items() if "/" in key}
        if record["step"] in (first, last):
            (start if record["step"] == first else end).update(keys)
    probe = {key: starts["general"].get(key) for key in PROBE_KEYS}
    crossed = _read_crossed(folder)
    return StageNumbers(folder, start, end, probe, crossed, finished, _json(folder / "settings.json"))


def newest(folder: Path, stem: str) -> Path:
    """Returns the record file of the latest start at update 0: an interrupted one before it leaves its own behind."""
    files = record_files(folder, stem)
    if not files:
        missing = folder / f"{stem}.jsonl"
        raise FileNotFoundError(f"{missing} does not exist, though {folder} is finished; run the stage again")
    return files[-1]


def refuse_different_probes(stages: Sequence[StageNumbers]) -> None:
    """Raises ``ValueError`` where general probes, or how they were read, differ between stages or seeds."""
    for key in PROBE_KEYS:
        refuse_different(f"{key} of the general probe", {stage.folder: stage.probe[key] for stage in stages})


def refuse_different(what: str, values: Mapping[Any, Any]) -> None:
    """Raises ``ValueError`` where the values differ, naming two that do."""
    for place, value in values.items():
        known, expected = next(iter(values.items()))
        if value != expected:
            raise ValueError(
                f"{what} is {expected!r} ({known}) and {value!r} ({place}): such runs are not compared; run one of "
                f"them again, with the same Python and the same configuration"
            )


def _read_overtraining(found: Contrast, base: Step, root: Path, count: int) -> None:
    if not base.finished:
        found.missing.append(f"seed {base.seed}: overtraining (its checkpoints are those of the base)")
        return
    steps = overtraining_steps(root, base.seed, count)
    lacking = [step for step in steps.values() if not step.finished]
    found.missing += [f"seed {base.seed}: {step.name}" for step in lacking if step.name != "sft"]
    if lacking:  # slopes over other checkpoints than the other seeds' would not compare
        return
    bases = {record["step"]: record for record in read_records(newest(base.folder, "geometry"))}
    rows = []
    for update, step in steps.items():
        numbers, record = read_stage(step.folder), bases[update]
        row = {"update": update, "tokens": record.get("tokens"), "rankme": record.get("rankme")}
        row |= {"id": numbers.end.get("behaviour/id/loss"), "ood": numbers.end.get("behaviour/ood/loss")}
        if unknown := [key for key, value in row.items() if value is None]:
            found.notes.append(f"seed {base.seed}: overtraining is left out, {step.folder} has no {', '.join(unknown)}")
            return
        rows.append(row | {"log10_tokens": math.log10(row["tokens"])})
    found.overtraining[base.seed] = rows


def _many(folder: Path, when: str) -> Numbers:
    values = _json(folder / "rollouts.json").get(when, {})
    return {f"many/{key}": value if math.isfinite(value) else None for key, value in values.items()}


def _read_crossed(folder: Path) -> dict[tuple[str, str], Numbers]:
    if not (folder / "crossed.jsonl").is_file():
        return {}
    records = read_records(newest(folder, "crossed"))
    last = max(record["step"] for record in records)
    return {
        ("end" if record["step"] == last else "start", record["probe"].removesuffix("_rollouts")): {
            metric: record.get(metric) for metric in METRICS
        }
        for record in records
        if record["step"] in (0, last)
    }


def _different_settings(name: str, by_seed: Mapping[int, StageNumbers]) -> list[str]:
    (first, expected), *others = by_seed.items()
    notes = []
    for seed, numbers in others:
        for key in sorted((expected.settings.keys() | numbers.settings.keys()) - _FREE):
            one, other = expected.settings.get(key), numbers.settings.get(key)
            if one != other:
                notes.append(f"{name}: {key} is {one!r} for seed {first} and {other!r} for seed {seed}")
    return notes


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
