"""The run of a post-training stage: its folder, its callbacks, and the training between two interruptions.

A stage's folder holds settings.json, geometry.jsonl, behaviour.jsonl, the trainer's checkpoint-*/, model/ (the weights
at the end, for ``from_pretrained``) and finished.json. Started again, a finished stage does nothing, and one that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from text.data import Row
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils.logging import disable_progress_bar

from geomcallbacks import ProbeSet, Schedule
from geomcallbacks.behaviour.hf import BehaviourCallback
from geomcallbacks.hf import GeometryCallback
from geomcallbacks.running.files import replace_file
from geomcallbacks.running.processes import first_before_others
from training.run_folder import changed_settings, remove
from training.settings import FREE_ON_RESUME, StageSettings
from training.texts import Texts
from training.weights import Weights

#: What a stage writes, and nothing else: the folder may hold files of the user's own.
WRITTEN = (
    *("checkpoint-*", "model", "start", "start.part", "corpus", "geometry*-spectra", "crossed*-spectra"),
    *("_geometry*-probes", "_crossed*-probes", "geometry*.jsonl", "behaviour*.jsonl", "crossed*.jsonl"),
    *("pairs_*.jsonl", "*_rollouts.safetensors", "rollouts.json", "finished.json", "settings.json"),
)


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
        self.settings, self.args, self.folder = settings, args, Path(args.output_dir)
        self.began = time.time()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        disable_progress_bar()  # of the weights' loading
        unset_hf_deepspeed_config()  # ZeRO-3 would cut weights as they load, and they are used whole before training
        with first_before_others():
            self._open()
        if settings.model_revision is not None and hasattr(args, "model_init_kwargs"):
            # TRL loads a reference model by the policy's name: without this, of another revision.
            args.model_init_kwargs = {**(args.model_init_kwargs or {}), "revision": settings.model_revision}
        self.weights = Weights(settings, args, self.folder)

    @functools.cached_property
    def texts(self) -> Texts:
        """What the stage trains on, is tested on and is measured on."""
        return Texts(self.settings, self.folder, self.weights.tokenizer())

    def _open(self) -> None:
        known = self.folder / "settings.json"
        if known.is_file() and self.settings.overwrite and PartialState().is_main_process:
            remove(self.folder, WRITTEN)
        now = json.loads(json.dumps(dataclasses.asdict(self.settings) | self.args.to_dict(), default=str))
        if not known.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write("settings.json", json.dumps(now, indent=1))
        elif changed := changed_settings(json.loads(known.read_text()), now, FREE_ON_RESUME):
            raise SystemExit(f"--output_dir {self.folder}: {changed}. Give another folder, or --overwrite True")

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder so that a kill leaves the whole of it or nothing."""
        replace_file(self.folder / name, text.encode())

    def finished(self) -> bool:
        """Tell whether the stage has been run to its end with these settings; print so where it has."""
        done = (self.folder / "finished.json").is_file()
        if done:
            print(f"{self.folder}: finished already; --overwrite True runs it again")
        return done

    def trainer_options(
        self, rows: list[Row], probes: dict[str, ProbeSet], measures: Mapping[str, Callable[..., Any]]
    ) -> dict[str, Any]:
        """Return what each of TRL's trainers takes but the model, with callbacks that measure at the same updates.

        Args:
            rows: What is trained on.
            probes: What the geometry is measured on, by label.
            measures: What is measured beside it, by name.
        """
        schedule = Schedule(every=self.settings.every, per_decade=self.settings.per_decade)
        geometry = GeometryCallback(probes, schedule=schedule, from_scratch=False, **self.settings.geometry_settings())
        return dict(
            args=self.args,
            train_dataset=Dataset.from_list(rows),
            processing_class=self.texts.tokenizer,
            peft_config=self.weights.lora(),
            callbacks=[geometry, BehaviourCallback(measures, schedule=schedule)],
        )

    def train(self, trainer: Trainer) -> None:
        """Train, from the last checkpoint where there is one, and save the weights, adapters merged.

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
        """Return the last checkpoint that a kill has not torn: Trainer writes trainer_state.json last."""
        whole = [file.parent for file in self.folder.glob("checkpoint-*/trainer_state.json")]
        return max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)

    def _restore(self, trainer: Trainer, checkpoint: Path) -> None:
        """Mend two things that Trainer (Transformers 5.23) does when it resumes.

        It skips weights that a file names otherwise than the model does, and would go on with those of the start: the
        head of a Pythia is ``embed_out`` in the one and ``lm_head`` in the other. And from a checkpoint of the last
        update it would make one update more.
        """
        # Not adapters, not shards of FSDP; and DeepSpeed reads files of its own, by the model's names.
        if any(checkpoint.glob("model*.safetensors")) and not trainer.is_deepspeed_enabled:
            trainer.model.load_state_dict(self.weights.load(checkpoint).state_dict())
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:
            trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0

    def finish(self, **results: Any) -> None:
        """Note that the stage is done, so that it is not run again, and print where everything is."""
        if not PartialState().is_main_process:
            return
        device = torch.cuda.get_device_name() if self.args.device.type == "cuda" else "CPU"
        minutes = (time.time() - self.began) / 60
        results |= {"updates": self.updates, "device": device, "processes": PartialState().num_processes}
        results |= {"date": time.strftime("%Y-%m-%d"), "minutes": round(minutes, 2)}
        self.write("finished.json", json.dumps(results, indent=1))
        left = [file for file in ("geometry.jsonl", "behaviour.jsonl") if (self.folder / file).is_file()]
        print(f"\nfinished in {minutes:.1f} minutes: {self.folder}/ holds {', '.join(left)} and model/")


def _shards(trainer: Trainer) -> bool:
    """Tell whether no process will hold the whole model: under FSDP and ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def end_processes() -> None:
    """End the process group once all have come here: at exit, a thread of it that still waits aborts the process."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
