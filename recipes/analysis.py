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
import subprocess
import sys
from pathlib import Path

from analyses.numbers import analyse
from analyses.table import render
from contrasts.run import find_launcher
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
    launcher: str = setting("python", "python, or words before the script: accelerate launch --num_processes 1")
    directions: str = setting("1,5,10,20", "numbers of directions that are kept or removed")
    checkpoints: int = setting(4, "checkpoints of the intervention, evenly spaced in log updates, the last included")

    def __post_init__(self) -> None:
        words = self.directions.split(",")
        if not all(word.strip().isdigit() for word in words):
            raise ValueError(f"directions={self.directions!r}: give whole numbers with commas between them")
        self.ks = [int(word) for word in words]
        if not Path(self.pretrain_config).is_file():
            raise ValueError(f"pretrain_config={self.pretrain_config!r}: no such file")
        if self.checkpoints < 1:
            raise ValueError(f"checkpoints={self.checkpoints}: give 1 or more")


def make_parser() -> RecipeParser:
    """Returns the parser of the command line."""
    return RecipeParser(AnalysisSettings, description=__doc__.split("\n")[0])


def main(settings: AnalysisSettings) -> None:
    """Pretrains, traces, intervenes, and writes tables, numbers and figure."""
    disable_progress_bar()  # of the checkpoints' loading
    folder = Path(settings.output_dir)
    run = RunFolder(folder / "pretrain")
    pretrain(settings, run)
    depth = json.loads((run.path / "settings.json").read_text())["layers"]
    steps = sorted(int(path.name.removeprefix("step-")) for path in run.path.glob("checkpoints/step-*"))
    traced, intervened = folder / "geometry-trace.jsonl", folder / "geometry-intervention.jsonl"
    trace(run.path, probes=probes_of(run), settings={"layers": list(range(depth + 1))}, out=traced, progress=True)
    done = trace(
        run.path,
        revisions=[f"step-{step:06d}" for step in evenly_in_log(steps, settings.checkpoints)],
        out=intervened,
        measures=interventions(run, settings.ks),
        progress=True,
    )
    numbers = analyse(run.geometry, run.behaviour, traced, done.behaviour)
    (folder / "analysis.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "analysis.md").write_text(render(numbers), encoding="utf-8")
    plot_analysis(read_runs([run.path]), folder / "analysis.png")
    shown = render({**numbers, "intervention": []})  # whose tables are long
    print(f"\n{shown}\ntables   {folder / 'analysis.md'}\nnumbers  {folder / 'analysis.json'}")
    print(f"figure   {folder / 'analysis.png'}")
    print(f"page     geomcallbacks report {run.path} {traced} {intervened}")


def pretrain(settings: AnalysisSettings, run: RunFolder) -> None:
    """Runs pretrain.py, or goes on with it, unless it has been run to its end.

    Raises:
        SystemExit: It failed.
    """
    known = run.path / "settings.json"
    if known.is_file():
        updates = json.loads(known.read_text())["updates"]
        if (run.path / "checkpoints" / f"step-{updates:06d}").is_dir():
            return
    command = [*find_launcher(settings.launcher), str(Path(__file__).with_name("pretrain.py"))]
    command += ["--config", settings.pretrain_config, "--output_dir", str(run.path), "--seed", str(settings.seed)]
    command += ["--resume" if run.resume_file.is_file() else "--overwrite", "True"]
    if code := subprocess.run(command).returncode:
        raise SystemExit(f"pretrain.py ended with {code}; started again, the analysis goes on")


def probes_of(run: RunFolder) -> dict[str, ProbeSet]:
    """Returns the probe of a run, and others: a quarter of its rows, half of each row, text of another domain."""
    probe = ProbeSet.load(run.path / "probe.safetensors")
    rows, length = probe.input_ids_nt.shape
    tokenizer = AutoTokenizer.from_pretrained(run.path / "tokenizer", trust_remote_code=False)
    other = probe_rows(Corpus.load(run.path / "corpus").texts("ood_test"), tokenizer, rows, length)
    return {
        "probe": probe,
        "quarter": ProbeSet.from_token_ids(probe.input_ids_nt[: rows // 4]),
        "half_length": ProbeSet.from_token_ids(probe.input_ids_nt[:, : length // 2]),
        "other_text": ProbeSet.from_token_ids(other),
    }


def interventions(run: RunFolder, ks: list[int]) -> dict[str, SpectralIntervention]:
    """Returns the spectral intervention on each cloze set of a run, with the directions of its probe."""
    probe = ProbeSet.load(run.path / "probe.safetensors")
    positions = json.loads((run.path / "settings.json").read_text())["positions"]
    read = int(positions) if positions.isdigit() else positions
    sets = {name: Choices.load(run.path / f"{name}.json") for name in CLOZE}
    return {
        f"intervention_{name}": SpectralIntervention(probe, rows, ks=ks, positions=read) for name, rows in sets.items()
    }


def evenly_in_log(steps: list[int], number: int) -> list[int]:
    """Returns so many of the steps, or all, evenly spaced in log updates, ending with the last."""
    first, last = max(1, steps[0], steps[-1] // 100), steps[-1]
    wanted = [first * (last / first) ** (k / max(1, number - 1)) for k in range(number)] if number > 1 else [last]
    return sorted({min(steps, key=lambda step: abs(step - want)) for want in wanted})


if __name__ == "__main__":
    try:
        main(make_parser().parse())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"analysis.py: error: {error}")
