"""Writes the folders that the stages of a contrast leave behind, with numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

UPDATES = (0, 40, 80, 160, 320, 640, 1280, 2560)
KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Change of each number over a stage for seed 0, in the direction that the paper states; seed s has (1 + s / 10) times
#: as much.
CHANGES = {
    "sft": {"rankme": 5.0, "alpha_req": -0.1, "id/loss": -0.5, "ood/loss": 0.4},
    "dpo": {"rankme": 2.0, "alpha_req": -0.05, "id/loss": 0.1, "ood/loss": 0.2, "preference/accuracy": 0.3},
    "grpo": {"rankme": -1.0, "alpha_req": 0.02, "id/loss": 0.1, "ood/loss": 0.1},
}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "header", "schema": 1, "resumed_from": None}, *({"kind": "record"} | r for r in records)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def geometry(step: int, probe: str, rankme: float, alpha: float = 1.0, **changed: Any) -> dict[str, Any]:
    known = {"step": step, "probe": probe, "layer": "layer2", "fingerprint": f"{probe}-print", "n": 2048, "d": 64}
    known |= {"alpha_window": [6, 48], "positions": 8, "precision": "fp32", "tokens": step * 1000}
    return known | {"rankme": rankme, "alpha_req": alpha, "top1_share": 0.2, "top10_share": 0.5} | changed


def write_base(folder: Path, seed: int = 0, fingerprint: str = "corpus") -> None:
    write_lines(folder / "geometry.jsonl", [geometry(u, "probe", 10.0 + seed + u / 100) for u in UPDATES])
    for update in UPDATES[1:]:
        (folder / "checkpoints" / f"step-{update:06d}").mkdir(parents=True, exist_ok=True)
    (folder / "corpus").mkdir(exist_ok=True)
    (folder / "corpus" / "manifest.json").write_text(json.dumps({"fingerprint": fingerprint}))
    (folder / "geometry.png").touch()


def write_stage(folder: Path, kind: str, seed: int = 0, factor: float = 1.0, **changed: Any) -> None:
    """A finished stage; ``changed`` replaces fields of the geometry records."""
    by = {key: value * factor * (1 + seed / 10) for key, value in CHANGES[kind].items()}
    records, rows = [], []
    for step, share in ((0, 0.0), (10, 0.3), (20, 1.0)):
        rankme, alpha = 20.0 + seed + share * by["rankme"], 0.8 + share * by["alpha_req"]
        records += [geometry(step, "general", rankme, alpha, **changed), geometry(step, "task", 5.0 + share)]
        starts = {key: 0.5 if key == "preference/accuracy" else 3.0 for key in by if "/" in key}
        rows.append({"step": step} | {key: start + step / 20 * by[key] for key, start in starts.items()})
    write_lines(folder / "geometry.jsonl", records)
    write_lines(folder / "behaviour.jsonl", rows)
    if kind == "grpo":
        start = {f"pass@{k}": 1 - 0.8 / k for k in KS} | {"reward": 0.2, "distinct_answers": 0.5, "self_bleu": 0.3}
        end = {f"pass@{k}": 0.7 + 0.02 * i for i, k in enumerate(KS)} | {"self_bleu": 0.6}
        end |= {"reward": 0.7 + seed / 100, "distinct_answers": 0.1 + seed / 100, "pass@256": 0.86 + seed / 1000}
        (folder / "rollouts.json").write_text(json.dumps({"start": start, "end": end}))
        cells = {(0, "start"): 30.0, (0, "end"): 20.0, (20, "start"): 29.0, (20, "end"): 18.0}
        crossed = [geometry(step, f"{text}_rollouts", value + seed) for (step, text), value in cells.items()]
        write_lines(folder / "crossed.jsonl", crossed)
    (folder / "finished.json").write_text(json.dumps({"device": "CPU", "date": "2026-11-22", "minutes": 1.5}))


def write_contrast(root: Path, factors: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    """All stages of as many seeds as there are factors, which multiply a seed's changes."""
    for seed, factor in enumerate(factors):
        folder = root / f"seed-{seed}"
        write_base(folder / "base", seed)
        for name in ("sft", "dpo", "grpo", "dpo_base", "grpo_base"):
            write_stage(folder / name, name.removesuffix("_base"), seed, factor)
        for index, update in enumerate((80, 160, 320, 640, 1280)):
            stage = folder / "overtraining" / f"step-{update:06d}"
            write_stage(stage, "sft", seed)
            # On a line of -0.1 (id) and +0.05 (ood) per halving, which ends at the chain's SFT.
            end = {"id/loss": 3.0 - 0.5 * (1 + seed / 10), "ood/loss": 3.0 + 0.4 * (1 + seed / 10) * factor}
            row = {"id/loss": end["id/loss"] + 0.1 * (5 - index), "ood/loss": end["ood/loss"] - 0.05 * (5 - index)}
            write_lines(stage / "behaviour.jsonl", [{"step": 0, "id/loss": 9.0}, {"step": 20} | row])
