"""`geomcallbacks trace MODEL…`: the arguments of `geomcallbacks.trace.trace` on a command line."""

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
    from geomcallbacks.trace.tracer import Measures, Summary

ABOUT = """\
Measures the geometry of saved checkpoints as the callbacks do in training, and writes their record file. Stop it at
any time: the same command goes on where it was. Exit status: 0, 1 where a checkpoint was broken and passed over (the
next start tries it again), 2 where an argument is wrong. Under `accelerate launch -m geomcallbacks trace …` every k-th
checkpoint goes to each of k processes, one to a GPU, and all write one file."""

EXAMPLES = """\
examples:
  geomcallbacks trace runs/demo                       a run's checkpoints, as the run itself measured them
  geomcallbacks trace EleutherAI/pythia-160m --revisions log --preset paper --evict
  geomcallbacks trace allenai/OLMo-2-0425-1B --revisions stage1-step10000-tokens21B,main --probe web=texts.jsonl
  geomcallbacks trace meta-llama/Llama-3.1-8B allenai/Llama-3.1-Tulu-3-8B-SFT allenai/Llama-3.1-Tulu-3-8B-DPO"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of this command, and `run`."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="hub name, name@revision, a folder of checkpoints (checkpoint-N, checkpoints/step-N, *.ckpt) or of one "
        "model; several are one curve, counted 0, 1, 2, …",
    )
    add(
        "--revisions",
        metavar="all|log|A,B|FILE",
        help="which of a model's checkpoints: all with a step in their names, about 8 a decade of them, names, or a "
        "file of names; default: main of a hub name, all in a folder",
    )
    add(
        "--out",
        metavar="FILE",
        help="record file; default: geometry-trace.jsonl in the folder, or MODEL-geometry.jsonl",
    )
    add("--tokens-per-update", type=int, metavar="N", help="to record training tokens where names do not tell them")
    add("--evict", action="store_true", help="delete what was fetched from the hub's cache once it is measured")
    _add_probe(parser)
    _add_behaviour(parser)
    _add_settings(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Trace as the command line says; returns the exit status."""
    from geomcallbacks.trace import trace
    from geomcallbacks.trace.measuring import Reading

    _quiet()
    reading = Reading(given.dtype, given.device, given.tokenizer, given.config, given.trust_remote_code, given.evict)
    share = (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
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
            share=share,
            progress=True,
        )
    except KeyboardInterrupt:
        print("geomcallbacks trace: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(said(summary))
    return summary.exit_status


def said(summary: Summary) -> str:
    """What a trace has done, in a line or two."""
    parts = [f"{len(summary.measured)} measured"]
    parts += [f"{summary.before} before"] if summary.before else []
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    files = [str(path) for path in (summary.path, summary.behaviour) if path is not None]
    return f"{', '.join(parts)}: {' and '.join(files)}"


def probes_of(given: argparse.Namespace) -> dict[str, ProbeSource] | None:
    """The probes that the command line names; None: those of the run, or offline text."""
    base = PAPER if given.preset == "paper" else ProbeSource()
    changes = {
        "rows": given.probe_rows,
        "length": given.probe_length,
        "min_length": given.probe_min_length,
        "column": given.probe_column,
        "config": given.probe_config,
        "split": given.probe_split,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if given.probe is None:
        run = Path(given.models[0]).expanduser()
        if changes and not given.preset and len(given.models) == 1 and run.is_dir() and recorded_files(run):
            options = ", ".join(f"--probe-{name.replace('_', '-')}" for name in changes)
            raise ValueError(
                f"{options}: {run} is read with the probe of its run, as it is; leave this out, or name another text"
                f" with --probe, such as --probe {OFFLINE}"
            )
        return {"probe": replace(base, **changes)} if changes or given.preset else None
    plain = replace(base, config=None)  # the preset's is that of its own data set
    sources = {label: replace(plain, source=source) for label, source in labelled(given.probe).items()}
    return {label: replace(source, **changes) for label, source in sources.items()}


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """Arguments of GeometryMonitor that the command line gives."""
    window = given.alpha_window or ((12, 100) if given.preset == "paper" else None)
    found = {
        "layers": given.layers and (given.layers[0] if len(given.layers) == 1 else given.layers),
        "positions": given.positions or ("last" if given.preset == "paper" else None),
        "alpha_window": window and tuple(window),
        "precision": given.precision,
        "batch_size": given.batch_size,
        "module": given.module,
        "intervals": given.intervals or None,
    }
    # Layer 0 is a layer.
    return {name: value for name, value in found.items() if value is not None}


def measures_of(given: argparse.Namespace) -> Measures | None:
    """The behaviour that the command line names; None: none."""
    if not (given.choices or given.memorisation or given.intervention):
        return None
    from geomcallbacks.trace.behaviour_source import BehaviourSource

    words = given.intervention.split(",") if given.intervention else []
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"--intervention {given.intervention}: give whole numbers with commas between them")
    choices, directions = labelled(given.choices or [], "choices"), tuple(map(int, words))
    return BehaviourSource(choices, given.memorisation, directions, given.choices_split).build


def _add_behaviour(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("behaviour (its numbers go to a file of their own, behaviour for geometry)")
    add = group.add_argument
    add(
        "--choices",
        nargs="+",
        action="extend",
        metavar="[LABEL=]SOURCE",
        help="multiple choice: saved by Choices.save (.json), or rows of SciQ's schema (.jsonl, hub data set)",
    )
    add("--choices-split", default="test", metavar="NAME", help="split of a hub data set (test)")
    add(
        "--intervention",
        metavar="K,K,…",
        help="also answer them with so many eigendirections of the first probe kept or removed",
    )
    add(
        "--memorisation",
        metavar="FILE",
        help="rank correlation with an infini-gram model: answers saved by Memorisation.save, such as a run's "
        "memorisation.safetensors",
    )


def _add_probe(parser: argparse.ArgumentParser) -> None:
    probe = parser.add_argument_group("probe")
    add = probe.add_argument
    add(
        "--probe",
        nargs="+",
        action="extend",
        metavar="[LABEL=]SOURCE",
        help=f".txt, .jsonl or .parquet file, hub data set, saved ProbeSet (.safetensors), or {OFFLINE}; default: that "
        f"of the run in the folder, else {OFFLINE}: Python's standard library, which differs between its versions",
    )
    add(
        "--preset",
        choices=["paper"],
        help="paper: 15,000 rows of FineWeb sample-10BT of at most 512 tokens, last position, ranks 12-100 "
        "(Li et al. 2025)",
    )
    add("--probe-rows", type=int, metavar="N", help="rows of each probe (1024)")
    add("--probe-length", type=int, metavar="N", help="tokens to which a row is cut (128)")
    add("--probe-min-length", type=int, metavar="N", help="texts of fewer tokens are passed over (32)")
    add("--probe-column", metavar="NAME", help="column of the texts (text)")
    add("--probe-config", metavar="NAME", help="configuration of a hub data set")
    add("--probe-split", metavar="NAME", help="split of a hub data set (train)")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement (in a run's folder, what is not given is as its records state)")
    add = group.add_argument
    number = lambda text: int(text) if text.lstrip("-").isdigit() else text
    add(
        "--layers",
        nargs="+",
        type=number,
        metavar="LAYER",
        help="numbers as in hidden_states, or submodules' names (-1)",
    )
    add("--positions", type=number, metavar="last|K|all|mean", help="which positions of a row (last)")
    add("--alpha-window", nargs=2, type=int, metavar=("A", "B"), help="ranks over which alpha is fitted (11 100)")
    add(
        "--precision",
        choices=["training", "fp32", "bf16"],
        help="training: as recorded in a run's folder, else that of the weights; bf16: autocast (training)",
    )
    add("--dtype", choices=["fp32", "bf16", "fp16", "auto"], help="weights; auto: as saved (fp32, or as recorded)")
    add("--batch-size", type=int, metavar="N", help="rows that go through the model together (32)")
    add("--module", metavar="NAME", help="submodule to read, where it is not found")
    add("--intervals", action="store_true", help="a 95 %% interval for each metric, by resampling the probe's rows")
    add("--device", metavar="NAME", help="such as cpu or cuda:1; default: this process's GPU, where there is one")
    add("--tokenizer", metavar="NAME", help="hub name or folder, for models without their own")
    add("--config", metavar="FILE", help="config.json, folder or hub name: the shape of Lightning checkpoints")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with a model")


def _quiet() -> None:
    """No bars of single downloads and single models among our own. Raises ``ValueError`` without Transformers."""
    try:
        import huggingface_hub
        import transformers.utils.logging
    except ModuleNotFoundError as error:
        raise ValueError(f'{error.name} is not installed: pip install "geomcallbacks[hf]"') from error

    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
