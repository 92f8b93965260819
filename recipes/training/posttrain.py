"""What the three post-training recipes share: settings, start weights, probes, callbacks, and the folder of a stage.

A stage's folder holds settings.json, geometry.jsonl, behaviour.jsonl, the trainer's checkpoint-*/, model/ (the weights
at the end, for ``from_pretrained``) and finished.json. Started again, a finished stage does nothing, and one that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, TaskType
from text.corpus import Corpus, offline_corpus, open_dataset
from text.data import Row, describe_rows, problem_rows, read_rows, to_pairs, write_rows
from text.tokens import probe_rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils.logging import disable_progress_bar

from geomcallbacks import ProbeSet, Schedule
from geomcallbacks.behaviour import CompletionLoss, Completions
from geomcallbacks.behaviour.hf import BehaviourCallback
from geomcallbacks.hf import GeometryCallback
from training.arguments import changed_settings
from training.stage_settings import FREE_ON_RESUME, StageSettings


class Stage:
    """One post-training run.

    Args:
        settings: The recipe's own settings.
        args: TRL's configuration; ``args.output_dir`` is the folder.

    Raises:
        SystemExit: The settings name no model, or are not those of the stage that the folder holds.
    """

    def __init__(self, settings: StageSettings, args: TrainingArguments) -> None:
        if args.output_dir is None:
            raise SystemExit("output_dir: name the folder of the stage")
        if settings.base is None and settings.model is None:
            raise SystemExit("give --base (a run folder of pretrain.py), --model, or both")
        self.settings, self.args = settings, args
        self.folder = Path(args.output_dir)
        self.base = None if settings.base is None else Path(settings.base)
        self.began = time.time()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        disable_progress_bar()  # of the weights' loading
        unset_hf_deepspeed_config()  # ZeRO-3 would cut weights as they load, and they are used whole before training
        with PartialState().main_process_first():
            self._open()
        if settings.model_revision is not None and hasattr(args, "model_init_kwargs"):
            # TRL loads a reference model by the policy's name: without this, of another revision.
            args.model_init_kwargs = {**(args.model_init_kwargs or {}), "revision": settings.model_revision}

    @property
    def finished(self) -> bool:
        """Whether the stage has been run to its end, with these settings."""
        return (self.folder / "finished.json").is_file()

    def _open(self) -> None:
        known = self.folder / "settings.json"
        if known.is_file() and self.settings.overwrite and PartialState().is_main_process:
            _remove_stage(self.folder)
        now = json.loads(json.dumps(dataclasses.asdict(self.settings) | self.args.to_dict(), default=str))
        if known.is_file():
            if changed := changed_settings(json.loads(known.read_text()), now, FREE_ON_RESUME):
                raise SystemExit(f"--output_dir {self.folder}: {changed}. Give another folder, or --overwrite True")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(known, json.dumps(now, indent=1))

    @property
    def start(self) -> str:
        """Where the start weights are, as ``from_pretrained`` takes it."""
        name = self.settings.model
        if name is None:
            name = str(self.base)
        for folder in (Path(name) / "model", *sorted(Path(name).glob("checkpoints/step-*"), reverse=True)):
            if folder.is_dir():
                return str(folder)
        if self.base is not None and name == str(self.base):
            raise SystemExit(f"--base {name}: there is no checkpoint in it; run pretrain.py to its end first")
        if self.settings.gguf_file is not None:
            return self._from_gguf(name)
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise SystemExit(f"--model {name}: there is no model in it; run that stage to its end first")
        return name

    def _from_gguf(self, name: str) -> str:
        """Writes the weights as safetensors once: TRL loads reference models by name, and knows no GGUF file."""
        folder, file = self.folder / "start", self.settings.gguf_file
        with PartialState().main_process_first():
            if not folder.is_dir():
                scratch = self.folder / "start.part"
                read = AutoModelForCausalLM.from_pretrained(
                    name, gguf_file=file, dtype=self.settings.dtype, trust_remote_code=self.args.trust_remote_code
                )
                # What was read is plain weights by now, and still marked as quantized, which cannot be saved.
                config = copy.deepcopy(read.config)
                if hasattr(config, "quantization_config"):
                    del config.quantization_config
                model = type(read)(config).to(read.dtype)
                model.load_state_dict(read.state_dict())
                model.save_pretrained(scratch)
                tokenizer = AutoTokenizer.from_pretrained(
                    name, gguf_file=file, trust_remote_code=self.args.trust_remote_code
                )
                tokenizer.save_pretrained(scratch)
                scratch.rename(folder)
        return str(folder)

    def model(self) -> PreTrainedModel:
        """Loads the start weights."""
        return self._load(self.start, self.settings.model_revision)

    def trained(self) -> PreTrainedModel:
        """Loads the weights that ``train`` has saved: free of the trainer's autocast, as the start weights are."""
        return self._load(str(self.folder / "model"), None)

    def _load(self, name: str, revision: str | None) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=self.settings.dtype,
            attn_implementation=self.settings.attention,
            trust_remote_code=self.args.trust_remote_code,
        )
        return model.to(self.args.device)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer of the start weights; EOS pads where it has no padding token."""
        tokenizer = AutoTokenizer.from_pretrained(
            self.start, revision=self.settings.model_revision, trust_remote_code=self.args.trust_remote_code
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def lora(self) -> LoraConfig | None:
        """Returns the adapters that are trained, or None where all weights are."""
        rank, alpha = self.settings.lora_rank, self.settings.lora_alpha
        if rank == 0:
            return None
        return LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=alpha, target_modules="all-linear")

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus of the base, whose parts it was not trained on; without a base, the standard library."""
        if self.base is not None:
            return Corpus.load(self.base / "corpus")
        folder = self.folder / "corpus"
        with PartialState().main_process_first():
            if not (folder / "manifest.json").is_file():
                offline_corpus(arithmetic_share=0.0).save(folder)
        return Corpus.load(folder)

    def train_rows(self, part: str, cut: Callable[[list[str]], list[Row]]) -> list[Row]:
        """Returns rows to train on: of ``--dataset``, else cut from a part of the corpus, and worked problems."""
        s = self.settings
        if s.dataset is None:
            problems = problem_rows(s.worked_problems, (2, 3), held_out=False, seed=4)
            return cut(self.corpus.texts(part))[: s.train_rows] + problems
        return read_rows(s.dataset, s.dataset_config, s.dataset_revision, s.dataset_split, s.train_rows)

    def test_rows(self, cut: Callable[[list[str]], list[Row]], limit: int | None = None) -> list[Row]:
        """Returns rows of the in-distribution test, at most ``test_rows`` or ``limit``."""
        s, limit = self.settings, self.settings.test_rows if limit is None else limit
        if s.dataset is None and s.test_dataset is None:
            return cut(self.corpus.texts("id_test"))[:limit]
        if s.test_dataset is not None:
            return read_rows(s.test_dataset, None, None, self.split_of(s.test_dataset), limit)
        return read_rows(str(s.dataset), s.dataset_config, s.dataset_revision, s.test_split, limit)

    def split_of(self, test: str) -> str:
        """Returns the split of a data set that is for tests alone: local files have "train" alone."""
        return "train" if Path(test).exists() else self.settings.test_split

    def ood_rows(self) -> list[Row]:
        """Returns instruction pairs out of distribution: another instruction, and text of another domain."""
        s = self.settings
        if s.ood_dataset is None:
            return describe_rows(self.corpus.texts("ood_test"))[: s.test_rows]
        return read_rows(s.ood_dataset, s.ood_config, s.ood_revision, s.ood_split, s.test_rows)

    def completions(
        self, pairs: Sequence[Row], tokenizer: PreTrainedTokenizerBase, key: str = "completion"
    ) -> Completions:
        """Turns pairs into the token rows of a test."""
        prompts, replies = [row["prompt"] for row in pairs], [row[key] for row in pairs]
        return Completions.from_texts(prompts, replies, tokenizer, max_length=self.settings.test_length)

    def completion_probe(self, rows: Completions, eos: int) -> ProbeSet:
        """Returns a probe of prompts and completions, without the EOS whose state every row would share."""
        pairs = zip(rows.prompt_ids, rows.completion_ids, strict=True)
        return self.probe_of([p + (c[:-1] if c[-1] == eos else c) for p, c in pairs])

    def losses(self, tokenizer: PreTrainedTokenizerBase, probe: ProbeSet) -> dict[str, CompletionLoss]:
        """Returns the loss on instruction pairs in and out of distribution, and on the general text."""
        batch = self.settings.test_batch
        in_distribution = self.completions(to_pairs(self.test_rows(write_rows)), tokenizer)
        out_of_it = self.completions(to_pairs(self.ood_rows()), tokenizer)
        rows = [row[:length].tolist() for row, length in zip(probe.input_ids_nt, probe.lengths_n, strict=True)]
        general = Completions([row[:1] for row in rows], [row[1:] for row in rows])
        named = {"id": in_distribution, "ood": out_of_it, "general": general}
        return {name: CompletionLoss(rows, batch_size=batch) for name, rows in named.items()}

    def general_probe(self, tokenizer: PreTrainedTokenizerBase) -> ProbeSet:
        """Returns held-out general text: of ``--probe_dataset``, the probe of the base, or text of the corpus."""
        s = self.settings
        if s.probe_dataset is not None:
            texts = open_dataset(s.probe_dataset, s.probe_config, streaming=not Path(s.probe_dataset).exists())
            size = dict(size=s.probe_rows, max_length=s.probe_length, text_column=s.probe_text_column)
            return ProbeSet.from_dataset(texts, tokenizer, **size)
        if self.base is not None:
            of_base = AutoTokenizer.from_pretrained(
                self.base / "tokenizer", trust_remote_code=self.args.trust_remote_code
            )
            if of_base.get_vocab() == tokenizer.get_vocab():
                return ProbeSet.load(self.base / "probe.safetensors")
        texts = self.corpus.texts("probe")
        return ProbeSet.from_token_ids(probe_rows(texts, tokenizer, s.probe_rows, s.probe_length))

    def probe_of(self, rows: Sequence[Sequence[int]]) -> ProbeSet:
        """Returns a probe of those token rows that are long enough for the positions that are read."""
        positions = self.settings.read_positions()
        shortest = positions + 1 if isinstance(positions, int) else 2
        kept = [list(row)[: self.settings.test_length] for row in rows if len(row) >= shortest]
        return ProbeSet.from_token_ids(kept[: self.settings.probe_rows])

    def callbacks(
        self, probes: dict[str, ProbeSet], measures: Mapping[str, Callable[..., Any]]
    ) -> list[TrainerCallback]:
        """Returns the callbacks that log geometry and behaviour at the same updates."""
        schedule = Schedule(every=self.settings.every, per_decade=self.settings.per_decade)
        read = self.settings.geometry_settings()
        geometry = GeometryCallback(probes, schedule=schedule, from_scratch=False, **read)
        return [geometry, BehaviourCallback(measures, schedule=schedule)]

    def train(self, trainer: Trainer) -> None:
        """Trains, from the last checkpoint where there is one, and saves the weights, adapters merged.

        Behaviour is left out where weights are sharded: each measure needs the whole model on one device.

        Raises:
            SystemExit: Adapters are trained, and weights are sharded.
        """
        if _shards(trainer):
            if self.settings.lora_rank:
                raise SystemExit("--lora_rank: adapters of sharded weights are not merged here; launch with ddp.yaml")
            trainer.remove_callback(BehaviourCallback)
            PartialState().print("weights are sharded: geometry is measured, behaviour is not (no behaviour.jsonl)")
        checkpoint = self._last_checkpoint()
        if checkpoint is not None:
            self._restore(trainer, checkpoint)
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= state.max_steps:  # Trainer (Transformers 5.23) would make one update more
                trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.updates = trainer.state.global_step
        if not self.settings.lora_rank:
            trainer.save_model(str(self.folder / "model"))
        elif trainer.is_world_process_zero():
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(self.folder / "model")
            trainer.processing_class.save_pretrained(self.folder / "model")
        if trainer.is_deepspeed_enabled:
            unset_hf_deepspeed_config()  # and so are the trained ones, afterwards
        PartialState().wait_for_everyone()

    def _last_checkpoint(self) -> Path | None:
        """Returns the last checkpoint that a kill has not torn: Trainer writes trainer_state.json last."""
        whole = [file.parent for file in self.folder.glob("checkpoint-*/trainer_state.json")]
        return max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)

    def _restore(self, trainer: Trainer, checkpoint: Path) -> None:
        """Gives the model all weights of a checkpoint.

        Trainer (Transformers 5.23) skips those that a file names otherwise than the model does, and would go on with
        those of the start: the head of a Pythia is ``embed_out`` in the one and ``lm_head`` in the other.
        """
        # Not adapters, not shards of FSDP; and DeepSpeed reads files of its own, by the model's names.
        if any(checkpoint.glob("model*.safetensors")) and not trainer.is_deepspeed_enabled:
            saved = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=self.settings.dtype, trust_remote_code=self.args.trust_remote_code
            )
            trainer.model.load_state_dict(saved.state_dict())

    def finish(self, **results: Any) -> None:
        """Notes that the stage is done, so that it is not run again, and says where everything is."""
        if not PartialState().is_main_process:
            return
        device = torch.cuda.get_device_name() if self.args.device.type == "cuda" else "CPU"
        minutes = (time.time() - self.began) / 60
        results |= {"updates": self.updates, "device": device, "processes": PartialState().num_processes}
        results |= {"date": time.strftime("%Y-%m-%d"), "minutes": round(minutes, 2)}
        write_whole(self.folder / "finished.json", json.dumps(results, indent=1))
        left = [file for file in ("geometry.jsonl", "behaviour.jsonl") if (self.folder / file).is_file()]
        print(f"\nfinished in {minutes:.1f} minutes: {self.folder}/ holds {', '.join(left)} and model/")


def _shards(trainer: Trainer) -> bool:
    """Returns whether no process will hold the whole model: under FSDP and ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def end_processes() -> None:
    """Ends the process group once all have come here: at exit, a thread of it that still waits aborts the process."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that a kill leaves the whole of it or nothing."""
    scratch = file.with_suffix(".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.rename(file)


def _remove_stage(folder: Path) -> None:
    """Removes what a stage writes and nothing else: the folder may hold files of the user's own."""
    folders = ("checkpoint-*", "model", "start", "start.part", "corpus", "geometry*-spectra", "crossed*-spectra")
    folders += ("geometry*-probes", "crossed*-probes")
    records = ("geometry*.jsonl", "behaviour*.jsonl", "crossed*.jsonl", "pairs_*.jsonl", "*_rollouts.safetensors")
    for pattern in (*folders, *records, "rollouts.json", "finished.json", "settings.json"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
