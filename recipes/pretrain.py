r"""Pretrains a small language model from scratch and shows how its geometry moves.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain_tiny.yaml

trains a Pythia-shaped model on the source of Python's standard library: two CPU cores, minutes, no network.
Every setting of the YAML file can be overridden on the command line, and unknown ones are refused.
``--dataset`` replaces the text, ``--model_config`` the shape: a hub name, or local files in the same format::

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain_tiny.yaml \
        --dataset texts.jsonl --model_config config.json --wandb online --output_dir runs/mine

The run folder then holds geometry.jsonl, geometry.png, checkpoints/step-*/ (``from_pretrained`` reads them),
the corpus with its manifest, the probe, the tokenizer, the loss, W&B's files, and resume/ for ``--resume``.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import lightning as L
import torch
import wandb
from judging.pretrain_behaviour import BehaviourSettings, build_measures, save_measures
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from text.corpus import Corpus, dataset_corpus, offline_corpus
from text.tokens import packed_rows, probe_rows, train_tokenizer
from training.arguments import RecipeParser, setting
from training.language_model import GeometryBar, LanguageModel, SaveModel
from training.run_folder import RunFolder
from training.settings import ProbeSettings
from training.shapes import build_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from geomcallbacks import ProbeSet, Schedule
from geomcallbacks.behaviour.lightning import BehaviourCallback
from geomcallbacks.lightning import GeometryCallback
from geomcallbacks.report import describe_phases, plot_analysis, read_runs


@dataclasses.dataclass
class PretrainSettings(BehaviourSettings, ProbeSettings):
    """Everything that a run depends on; ``settings.json`` in the run folder keeps it."""

    output_dir: str = setting("runs/pretrain", "run folder")
    seed: int = setting(0, "seed of the weights and of the order of the rows; corpus and probe do not depend on it")
    resume: bool = setting(False, "go on from resume/last.ckpt in the run folder")
    overwrite: bool = setting(False, "replace the run that the run folder holds")

    dataset: str | None = setting(None, "hub name, file or folder of text; default: Python's standard library")
    dataset_config: str | None = setting(None, "configuration of a hub data set")
    dataset_revision: str | None = setting(None, "revision of a hub data set")
    dataset_split: str = setting("train", "split that is read, and split again by document")
    text_column: str = setting("text", "column that holds the text")
    max_documents: int | None = setting(None, "read at most so many documents")
    streaming: bool = setting(False, "read a hub data set row by row; needs max_documents")
    arithmetic_share: float = setting(0.03, "worked sums, as a share of the characters of the offline text")
    tokenizer: str | None = setting(None, "hub name or folder; default: trained on the pretraining part")
    vocab_size: int = setting(4096, "vocabulary of the tokenizer that is trained")

    architecture: Literal["neox", "olmo2"] = setting("neox", "Pythia-shaped or OLMo-2-shaped")
    hidden_size: int = setting(64, "width d")
    layers: int = setting(2, "number of layers")
    heads: int = setting(2, "attention heads a layer")
    model_config: str | None = setting(None, "hub name, folder or config.json; replaces the four above")

    updates: int = setting(3000, "optimiser updates")
    batch_size: int = setting(16, "rows an update, over all devices and accumulated batches")
    seq_length: int = setting(64, "tokens a row")
    accumulate: int = setting(1, "batches of gradients accumulated for an update")
    learning_rate: float = setting(3e-3, "maximum learning rate of AdamW")
    warmup: int = setting(50, "updates over which the learning rate rises linearly")
    lr_schedule: Literal["cosine", "constant"] = setting("cosine", "learning rate after the warm-up")
    min_lr: float = setting(0.1, "where cosine ends, as a share of learning_rate")
    weight_decay: float = setting(0.1, "AdamW's, on matrices only")
    clip: float = setting(1.0, "maximum norm of the gradient")

    per_decade: int = setting(8, "log-spaced measurements a tenfold of updates")
    every: int | None = setting(None, "updates between later measurements; default: a fiftieth of the run")
    checkpoints: Literal["measured", "last"] = setting("measured", "which updates are saved")

    accelerator: str = setting("auto", "Lightning's accelerator")
    devices: str = setting("auto", "Lightning's devices; under a multi-process launcher its processes a node")
    strategy: str = setting("auto", "Lightning's strategy")
    precision: str = setting("auto", "Lightning's precision; auto: bf16-mixed where a GPU has it, else 32-true")
    threads: int | None = setting(None, "CPU threads of torch; accelerate launch leaves one")
    wandb: Literal["auto", "offline", "online", "disabled"] = setting("auto", "auto: $WANDB_MODE, else offline")
    wandb_project: str = setting("geomcallbacks", "project in Weights & Biases")
    log_every: int = setting(10, "updates between logged losses")


def make_parser() -> RecipeParser:
    """Return the parser of the command line."""
    return RecipeParser(PretrainSettings, description=__doc__.split("\n")[0])


def main(settings: PretrainSettings) -> None:
    """Pretrain, measure, and draw the figure."""
    disable_progress_bar()  # of the checkpoints' writing, which would break the one of the training
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware, tips
    # Lightning 2.6 uses what torch 2.13 deprecates: nothing that the reader of this output can change.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    folder = RunFolder(settings.output_dir)
    first_rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
    start = folder.resumed_update(settings) if settings.resume else 0
    if first_rank and not settings.resume:
        folder.refuse_run(settings)

    corpus = Corpus.load(folder.path / "corpus") if settings.resume else read_corpus(settings)
    tokenizer = read_tokenizer(settings, corpus)
    rows_nt = packed_rows(corpus.texts("pretrain"), tokenizer, settings.seq_length + 1)
    held_out = probe_rows(corpus.texts("probe"), tokenizer, settings.probe_rows, settings.probe_length)
    probe = ProbeSet.from_token_ids(held_out)
    measures = build_measures(settings, rows_nt, corpus, tokenizer, probe)
    if first_rank and not settings.resume:
        folder.begin(settings, corpus, tokenizer, probe)
        save_measures(measures, folder.path)

    L.seed_everything(settings.seed, workers=True)
    model = build_model(settings, tokenizer, positions=max(settings.seq_length, settings.probe_length))
    schedule = Schedule(every=settings.every, per_decade=settings.per_decade)
    geometry = GeometryCallback(
        probe,
        schedule=schedule,
        path=folder.geometry,
        tokens_per_update=settings.batch_size * settings.seq_length,
        **settings.geometry_settings(),
    )
    measured = schedule.steps(settings.updates) if settings.checkpoints == "measured" else [settings.updates]
    saver = SaveModel(folder.path / "checkpoints", measured, tokenizer)
    behaviour = [BehaviourCallback(measures, schedule=schedule, path=folder.behaviour)] if measures else []
    trainer = make_trainer(settings, folder, start, [geometry, *behaviour, saver])
    for logger in trainer.loggers:
        logger.log_hyperparams(dataclasses.asdict(settings))
    trainer.print(
        f"{model.num_parameters():,} parameters, {rows_nt.numel():,} tokens of text, vocabulary {len(tokenizer)}, "
        f"{settings.updates} updates of {settings.batch_size} x {settings.seq_length} tokens"
    )
    module = LanguageModel(model, rows_nt, settings, start)
    trainer.fit(module, ckpt_path=str(folder.resume_file) if settings.resume else None, weights_only=True)
    if trainer.is_global_zero:
        report(folder, trainer)


def make_trainer(settings: PretrainSettings, folder: RunFolder, start: int, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a Trainer that logs loss and geometry, clips, and keeps one checkpoint to resume from."""
    loggers: list[Logger] = [CSVLogger(folder.path, name="loss", version=f"from_{start:06d}")]
    mode = os.environ.get("WANDB_MODE", "offline") if settings.wandb == "auto" else settings.wandb
    if mode != "disabled":
        quiet = wandb.Settings(silent=mode == "offline")  # report() says what W&B would, in fewer lines
        where = {"save_dir": folder.path, "project": settings.wandb_project, "name": folder.path.name}
        loggers.append(WandbLogger(**where, mode=mode, settings=quiet))
    keep = ModelCheckpoint(
        folder.resume_file.parent,
        filename=folder.resume_file.stem,
        every_n_train_steps=max(1, settings.updates // 10),
        enable_version_counter=False,
    )
    devices, nodes = devices_of(settings.devices, os.environ)
    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=settings.strategy,
        precision=precision if settings.precision == "auto" else settings.precision,
        max_steps=settings.updates,
        max_epochs=1,  # of all updates: SeededBatches counts them, not passes over the text
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip,
        use_distributed_sampler=False,  # SeededBatches deals the rows
        logger=loggers,
        log_every_n_steps=settings.log_every,
        callbacks=[*callbacks, GeometryBar(refresh_rate=max(1, settings.updates // 200)), keep],
        enable_model_summary=False,
    )


def devices_of(asked: str, environment: Mapping[str, str]) -> tuple[str | int, int]:
    """Return the devices of a node and the nodes: where `asked` is "auto", those that a launcher has been told.

    `accelerate launch --num_processes 1` starts the recipe without ranks, and Lightning would take every GPU there is.
    """
    if asked != "auto":
        return asked, 1
    if "TORCHELASTIC_RUN_ID" in environment:
        here = int(environment["LOCAL_WORLD_SIZE"])
        return here, int(environment["WORLD_SIZE"]) // here
    return (1 if "ACCELERATE_MIXED_PRECISION" in environment else asked), 1


def read_corpus(settings: PretrainSettings) -> Corpus:
    """Return the standard library, or what ``--dataset`` names."""
    if settings.dataset is None:
        return offline_corpus(arithmetic_share=settings.arithmetic_share)
    where = (settings.dataset, settings.dataset_config, settings.dataset_revision, settings.dataset_split)
    return dataset_corpus(*where, settings.text_column, settings.max_documents, settings.streaming)


def read_tokenizer(settings: PretrainSettings, corpus: Corpus) -> PreTrainedTokenizerBase:
    """Return the tokenizer that ``--tokenizer`` names, or one trained on the pretraining part."""
    if settings.tokenizer is None:
        return train_tokenizer(corpus.texts("pretrain"), settings.vocab_size)
    return AutoTokenizer.from_pretrained(settings.tokenizer, trust_remote_code=False)


def report(folder: RunFolder, trainer: L.Trainer) -> None:
    """Draws the figure and says where everything is."""
    run = read_runs([folder.geometry])[0]
    plot_analysis(run, folder.figure)
    lines = [describe_phases(run), "", f"figure    {folder.figure}", f"records   {folder.geometry}"]
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # experiment.dir is the run's files/ folder; the commands take the run's own.
            wandb_run = os.path.relpath(Path(logger.experiment.dir).parent)
            logger.experiment.finish()
            lines += [
                "the same curves in Weights & Biases:",
                f"  in this terminal, no account needed   wandb leet {wandb_run}",
                f"  in the browser, with an account       wandb sync {wandb_run}",
            ]
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(make_parser().parse())
