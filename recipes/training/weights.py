"""The weights that a post-training stage starts from, and their tokenizer: where they are, and how they are loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from geomcallbacks.running.processes import first_before_others
from training.settings import StageSettings


class Weights:
    """Loads the start weights of a stage, and others in the same way.

    Args:
        settings: Those of the recipe.
        args: TRL's configuration.
        folder: The stage's, where weights that were read from a GGUF file are kept.
    """

    def __init__(self, settings: StageSettings, args: TrainingArguments, folder: Path) -> None:
        self.settings, self.folder, self.device = settings, folder, args.device
        self._trust: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}

    @property
    def start(self) -> str:
        """Where the start weights are, as ``from_pretrained`` takes it.

        Raises:
            SystemExit: There are no weights yet where the settings look for them.
        """
        base, name = self.settings.base, self.settings.model or str(self.settings.base)
        for folder in (Path(name) / "model", *sorted(Path(name).glob("checkpoints/step-*"), reverse=True)):
            if folder.is_dir():
                return str(folder)
        if name == base:
            raise SystemExit(f"--base {name}: there is no checkpoint in it; run pretrain.py to its end first")
        if self.settings.gguf_file is not None:
            return self._from_gguf(name)
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise SystemExit(f"--model {name}: there is no model in it; run that stage to its end first")
        return name

    def model(self) -> PreTrainedModel:
        """Load the start weights."""
        return self.load(self.start, self.settings.model_revision)

    def load(self, name: str | Path, revision: str | None = None) -> PreTrainedModel:
        """Load weights onto the device of the training, with the settings of the start weights."""
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=self.settings.dtype,
            attn_implementation=self.settings.attention,
            **self._trust,
        )
        return model.to(self.device)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the start weights; EOS pads where it has no padding token."""
        tokenizer = AutoTokenizer.from_pretrained(self.start, revision=self.settings.model_revision, **self._trust)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def lora(self) -> LoraConfig | None:
        """Return the adapters that are trained, or None where all weights are."""
        rank, alpha = self.settings.lora_rank, self.settings.lora_alpha
        if rank == 0:
            return None
        return LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=alpha, target_modules="all-linear")

    def _from_gguf(self, name: str) -> str:
        """Write the weights as safetensors once: TRL loads reference models by name, and knows no GGUF file."""
        folder, options = self.folder / "start", {"gguf_file": self.settings.gguf_file, **self._trust}
        with first_before_others():
            if not folder.is_dir():
                scratch = self.folder / "start.part"
                read = AutoModelForCausalLM.from_pretrained(name, dtype=self.settings.dtype, **options)
                # What was read is plain weights by now, and still marked as quantized, which cannot be saved.
                config = copy.deepcopy(read.config)
                if hasattr(config, "quantization_config"):
                    del config.quantization_config
                model = type(read)(config).to(read.dtype)
                model.load_state_dict(read.state_dict())
                model.save_pretrained(scratch)
                AutoTokenizer.from_pretrained(name, **options).save_pretrained(scratch)
                scratch.rename(folder)
        return str(folder)
