"""Measure the geometry of saved checkpoints as the callbacks do in training, and write their record file.

Stop it at any time: the same command goes on where it was. Exit status: 0, 1 where a checkpoint was broken and passed
over (the next start tries it again), 2 where an argument is wrong. Under `accelerate launch -m geomcallbacks trace …`
every k-th checkpoint goes to each of k processes, one to a GPU, and all write one file.

Examples:
  geomcallbacks trace runs/demo                       a run's checkpoints, as the run itself measured them
  geomcallbacks trace EleutherAI/pythia-160m --revisions log --preset paper --evict
  geomcallbacks trace allenai/OLMo-2-0425-1B --revisions stage1-step10000-tokens21B,main --probe web=texts.jsonl
  geomcallbacks trace meta-llama/Llama-3.1-8B allenai/Llama-3.1-Tulu-3-8B-SFT allenai/Llama-3.1-Tulu-3-8B-DPO
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.trace.probe_source import OFFLINE, PAPER, ProbeSource, labelled
from geomcallbacks.trace.recorded import recorded_files

if TYPE_CHECKING:
    from geomcallbacks.trace.plan import Measures

#: Options `--probe-…` of the fields of ProbeSource, and options of the arguments of GeometryMonitor.
_PROBE = ("rows", "length", "min_length", "column", "config", "split")
_SETTINGS = ("layers", "positions", "alpha_window", "precision", "batch_size", "module", "intervals")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of this command, and `run`."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    text = "hub name, name@revision, a folder of checkpoints (checkpoint-N, checkpoints/step-N, *.ckpt) or of one model"
    add("models", nargs="+", metavar="MODEL", help=f"{text}; several are one curve, counted 0, 1, 2, …")
    text = "all with a step in their names, about 8 a decade of them, names (or NAME=STEP), or a file of those"
    add("--revisions", metavar="all|log|A,B|FILE", help=f"{text} (main of a hub name, all in a folder)")
    add("--out", metavar="FILE", help="record file (geometry-trace.jsonl in the folder, or MODEL-geometry.jsonl)")
    add("--tokens-per-update", type=int, metavar="N", help="to record training tokens where names do not tell them")
    add("--evict", action="store_true", help="delete what was fetched from the hub's cache once it is measured")
    add = parser.add_argument_group("probe").add_argument
    text = f"text (.txt, .jsonl, .parquet), hub data set, saved ProbeSet (.safetensors), or {OFFLINE}: Python's library"
    add("--probe", nargs="+", action="extend", metavar="[LABEL=]SOURCE", help=f"{text} (the run's, else {OFFLINE})")
    add("--preset", choices=["paper"], help="15,000 rows of FineWeb, last position, ranks 12-100 (Li et al. 2025)")
    add("--probe-rows", type=int, metavar="N", help="rows of each probe (1024)")
    add("--probe-length", type=int, metavar="N", help="tokens to which a row is cut (128)")
    add("--probe-min-length", type=int, metavar="N", help="texts of fewer tokens are passed over (32)")
    add("--probe-column", metavar="NAME", help="column of the texts (text)")
    add("--probe-config", metavar="NAME", help="configuration of a hub data set")
    add("--probe-split", metavar="NAME", help="split of a hub data set (train)")
    text = "behaviour (its numbers go to a file of their own, behaviour for geometry)"
    add = parser.add_argument_group(text).add_argument
    text = "multiple choice: saved by Choices.save (.json), or rows of SciQ's schema (.jsonl, hub data set)"
    add("--choices", nargs="+", action="extend", metavar="[LABEL=]SOURCE", help=text)
    add("--choices-split", default="test", metavar="NAME", help="split of a hub data set (test)")
    add("--intervention", metavar="K,K,…", help="answer with K directions of the first probe kept or removed, too")
    add("--memorisation", metavar="FILE", help="correlation with n-grams: memorisation.safetensors of a run")
    text = "measurement (in a run's folder, what is not given is as its records state)"
    add = parser.add_argument_group(text).add_argument
    number = lambda text: int(text) if text.lstrip("-").isdigit() else text
    add("--layers", nargs="+", type=number, metavar="LAYER", help="numbers as in hidden_states, or submodules (-1)")
    add("--positions", type=number, metavar="last|K|all|mean", help="which positions of a row (last)")
    add("--alpha-window", nargs=2, type=int, metavar=("A", "B"), help="ranks over which alpha is fitted (11 100)")
    add("--precision", choices=["training", "fp32", "bf16"], help="as recorded, else that of the weights; or autocast")
    add("--batch-size", type=int, metavar="N", help="rows that go through the model together (32)")
    add("--module", metavar="NAME", help="submodule to read, where it is not found")
    add("--intervals", action="store_const", const=True, help="a 95 %% interval for each metric, over the probe's rows")
    add = parser.add_argument_group("how checkpoints are read").add_argument
    add("--dtype", choices=["fp32", "bf16", "fp16", "auto"], help="weights; auto: as saved (fp32, or as recorded)")
    add("--weights", choices=["training", "average"], help="where a checkpoint holds both (those of the live run)")
    add("--device", metavar="NAME", help="such as cpu or cuda:1; default: this process's GPU, where there is one")
    add("--tokenizer", metavar="NAME", help="hub name or folder, for models without their own")
    add("--config", metavar="FILE", help="config.json, folder or hub name: the shape of Lightning checkpoints")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with a model")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Trace as the command line says, and return the exit status."""
    import huggingface_hub
    import transformers.utils.logging

    from geomcallbacks.trace.checkpoints.loading import Reading
    from geomcallbacks.trace.tracer import trace

    how = (given.dtype, given.device, given.tokenizer, given.config, given.trust_remote_code, given.evict)
    reading = Reading(*how, weights=given.weights)
    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    transformers.utils.logging.disable_progress_bar()  # of single models, among our own
    transformers.utils.logging.set_verbosity_error()
    try:
        summary = trace(
            given.models,
            revisions=given.revisions,
            probes=probes_of(given),
            settings=settings_of(given),
            out=given.out,
            measures=measures_of(given),
            reading=reading,
            tokens_per_update=given.tokens_per_update,
            share=(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))),
            progress=True,
        )
    except KeyboardInterrupt:
        print("geomcallbacks trace: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        raise ValueError(f'{error.name} is not installed: pip install "geomcallbacks[trace]"') from error
    files = " and ".join(str(path) for path in (summary.path, summary.behaviour) if path is not None)
    print(f"{len(summary.measured)} measured, {summary.before} before, {len(summary.failed)} failed: {files}")
    return summary.exit_status


def probes_of(given: argparse.Namespace) -> dict[str, ProbeSource] | None:
    """Return the probes that the command line names; None: those of the run, or offline text."""
    base = PAPER if given.preset == "paper" else ProbeSource()
    changes = {name: value for name in _PROBE if (value := getattr(given, f"probe_{name}")) is not None}
    if given.probe is not None:
        base = replace(base, config=None)  # the preset's is that of its own data set
        return {label: replace(base, source=source, **changes) for label, source in labelled(given.probe).items()}
    run = Path(given.models[0]).expanduser()
    if changes and not given.preset and len(given.models) == 1 and run.is_dir() and recorded_files(run):
        options = ", ".join(f"--probe-{name.replace('_', '-')}" for name in changes)
        remedy = f"leave this out, or name another text with --probe, such as --probe {OFFLINE}"
        raise ValueError(f"{options}: {run} is read with the probe of its run, as it is; {remedy}")
    return {"probe": replace(base, **changes)} if changes or given.preset else None


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of GeometryMonitor that the command line gives."""
    preset = {"positions": "last", "alpha_window": [12, 100]} if given.preset == "paper" else {}
    found = {name: value for name in _SETTINGS if (value := getattr(given, name)) is not None}
    if len(found.get("layers", ())) == 1:
        found["layers"] = found["layers"][0]
    return preset | found


def measures_of(given: argparse.Namespace) -> Measures | None:
    """Return the behaviour that the command line names; None: none."""
    if not (given.choices or given.memorisation or given.intervention):
        return None
    from geomcallbacks.trace.behaviour_source import BehaviourSource

    words = given.intervention.split(",") if given.intervention else []
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"--intervention {given.intervention}: give whole numbers with commas between them")
    choices, directions = labelled(given.choices or [], "choices"), tuple(map(int, words))
    return BehaviourSource(choices, given.memorisation, directions, given.choices_split).build
