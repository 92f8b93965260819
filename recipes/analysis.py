r"""Pretrains a small model and holds its phases against what it memorises and what it can do.

    python recipes/analysis.py --config recipes/configs/analysis_tiny.yaml

pretrains with both cloze sets, the ∞-gram comparison and the loss by token frequency logged beside the geometry; traces
the checkpoints at every layer, and with a quarter of the probe, rows of half the length and text of another domain;
keeps or removes leading directions of the last hidden state at some checkpoints; and finds the phases. The output
folder then holds analysis.md (the tables), analysis.json (the numbers) and analysis.png. Stopped, the command goes on
where it was; finished, it only writes tables and figure again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pretrain
from analyses.numbers import analyse
from analyses.table import render
from text.corpus import Corpus
from text.tokens import probe_rows
from training.arguments import RecipeParser, setting
from training.run_folder import RunFolder
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from geomcallbacks import ProbeSet
from geomcallbacks.behaviour import Choices, SpectralIntervention
from geomcallbacks.report import plot_analysis, read_runs
from geomcallbacks.trace import trace

CLOZE = ("cloze_near", "cloze_far")


@dataclasses.dataclass
class AnalysisSettings:
    """What is pretrained and measured."""

    output_dir: str = setting("runs/analysis_tiny", "folder of the analysis; pretrain/ in it holds the run")
    pretrain_config: str = setting("recipes/configs/analysis_pretrain_tiny.yaml", "configuration of pretrain.py")
    seed: int = setting(0, "seed of the weights and of the order of the rows")
    directions: list[int] = dataclasses.field(
        default_factory=lambda: [1, 5, 10, 20], metadata={"help": "numbers of directions that are kept or removed"}
    )
    checkpoints: int = setting(4, "checkpoints of the intervention, evenly spaced in log updates, the last included")

    def __post_init__(self) -> None:
        if min(self.directions) < 1:
            raise ValueError(f"directions={self.directions}: give whole numbers from 1")
        if not Path(self.pretrain_config).is_file():
            raise ValueError(f"pretrain_config={self.pretrain_config!r}: no such file")
        if self.checkpoints < 1:
            raise ValueError(f"checkpoints={self.checkpoints}: give 1 or more")


def make_parser() -> RecipeParser:
    """Return the parser of the command line."""
    return RecipeParser(AnalysisSettings, description=__doc__.split("\n")[0])


def main(settings: AnalysisSettings) -> None:
    """Pretrain, trace, intervene, and write tables, numbers and figure."""
    folder = Path(settings.output_dir)
    run = RunFolder(folder / "pretrain")
    pretrain_to_the_end(settings, run)
    trained = settings_of(run)
    disable_progress_bar()  # of the checkpoints' loading
    steps = sorted(int(path.name.removeprefix("step-")) for path in run.path.glob("checkpoints/step-*"))
    traced, intervened = folder / "geometry-trace.jsonl", folder / "geometry-intervention.jsonl"
    layers = {"layers": list(range(trained["layers"] + 1))}
    trace(run.path, probes=probes_of(run), settings=layers, out=traced, progress=True)
    done = trace(
        run.path,
        revisions=[f"step-{step:06d}" for step in evenly_in_log(steps, settings.checkpoints)],
        out=intervened,
        measures=interventions(run, trained["positions"], settings.directions),
        progress=True,
    )
    numbers = analyse(run.geometry, run.behaviour, traced, done.behaviour)
    (folder / "analysis.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "analysis.md").write_text(render(numbers), encoding="utf-8")
    plot_analysis(read_runs([run.path]), folder / "analysis.png")
    short = render({**numbers, "intervention": []})  # whose tables are long
    print(f"\n{short}\ntables   {folder / 'analysis.md'}\nnumbers  {folder / 'analysis.json'}")
    print(f"figure   {folder / 'analysis.png'}")
    print(f"page     geomcallbacks report {run.path} {traced} {intervened}")


def settings_of(run: RunFolder) -> dict[str, Any]:
    """Return the settings of a run; none where it has not begun."""
    file = run.path / "settings.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def pretrain_to_the_end(settings: AnalysisSettings, run: RunFolder) -> None:
    """Run pretrain.py, or go on with it, unless the last checkpoint stands there."""
    if (run.path / "checkpoints" / f"step-{settings_of(run).get('updates', 0):06d}").is_dir():
        return
    words = ["--config", settings.pretrain_config, "--output_dir", str(run.path), "--seed", str(settings.seed)]
    words += ["--resume" if run.resume_file.is_file() else "--overwrite", "True"]
    pretrain.main(pretrain.make_parser().parse(words))


def probes_of(run: RunFolder) -> dict[str, ProbeSet]:
    """Return the probe of a run, and others: a quarter of its rows, half of each row, text of another domain."""
    probe = ProbeSet.load(run.path / "probe.safetensors")
    rows, length = probe.input_ids_nt.shape
    tokenizer = AutoTokenizer.from_pretrained(run.path / "tokenizer", trust_remote_code=False)
    others = {
        "quarter": probe.input_ids_nt[: rows // 4],
        "half_length": probe.input_ids_nt[:, : length // 2],
        "other_text": probe_rows(Corpus.load(run.path / "corpus").texts("ood_test"), tokenizer, rows, length),
    }
    return {"probe": probe} | {name: ProbeSet.from_token_ids(ids_nt) for name, ids_nt in others.items()}


def interventions(run: RunFolder, positions: str, ks: list[int]) -> dict[str, SpectralIntervention]:
    """Return the spectral intervention on each cloze set of a run, with the directions of its probe."""
    probe = ProbeSet.load(run.path / "probe.safetensors")
    read = int(positions) if positions.isdigit() else positions
    sets = {name: Choices.load(run.path / f"{name}.json") for name in CLOZE}
    return {
        f"intervention_{name}": SpectralIntervention(probe, rows, ks=ks, positions=read) for name, rows in sets.items()
    }


def evenly_in_log(steps: list[int], number: int) -> list[int]:
    """Return so many of the steps, or all, evenly spaced in log updates, ending with the last."""
    first, last = max(1, steps[0], steps[-1] // 100), steps[-1]
    return sorted({min(steps, key=lambda step: abs(step - want)) for want in np.geomspace(last, first, number)})


if __name__ == "__main__":
    try:
        main(make_parser().parse())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"analysis.py: error: {error}")
