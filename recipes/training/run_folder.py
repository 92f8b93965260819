"""The folder of a run: what stands where, and what must agree before a run is resumed or replaced."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from text.corpus import Corpus
from transformers import PreTrainedTokenizerBase

from geomcallbacks import ProbeSet
from geomcallbacks.trace.checkpoints.loading import refusal

#: Settings that may differ between a run and its continuation: where it runs, not what it computes.
FREE_ON_RESUME = (
    *("output_dir", "resume", "overwrite", "accelerator", "devices", "strategy", "threads", "wandb", "wandb_project"),
)

#: What a run writes, and nothing else: the folder may hold files of the user's own.
WRITTEN = (
    *("checkpoints", "resume", "loss", "corpus", "tokenizer", "geometry.png"),
    *("geometry*.jsonl", "geometry*-spectra", "_geometry*-probes", "behaviour*.jsonl"),
    *("cloze_*.json", "memorisation.safetensors", "token_counts.txt"),
)


class RunFolder:
    """Paths of a run, and the few files that the recipe reads and writes itself.

    Attributes:
        path: The folder.
        geometry: Records of the geometry, JSON Lines.
        behaviour: Records of what is held against it, where a run measures that.
        figure: The figure drawn at the end.
        resume_file: Lightning's checkpoint, with the state of the optimiser.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.geometry = self.path / "geometry.jsonl"
        self.behaviour = self.path / "behaviour.jsonl"
        self.figure = self.path / "geometry.png"
        self.resume_file = self.path / "resume" / "last.ckpt"

    def refuse_run(self, settings: Any) -> None:
        """End the program if the folder holds a run that ``overwrite`` does not allow to replace.

        Raises:
            SystemExit: It does.
        """
        if self.geometry.exists() and not settings.overwrite:
            raise SystemExit(
                f"--output_dir {self.path}: there is a run here; give another folder, --overwrite True "
                f"to replace the run, or --resume True to go on with it"
            )

    def begin(self, settings: Any, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, probe: ProbeSet) -> None:
        """Remove the run that the folder holds, and write what the new one starts from.

        Settings, corpus, tokenizer and probe are kept for later stages and for measuring the checkpoints again.
        Only now, since corpus and tokenizer may have been read from this very folder.
        """
        remove(self.path, WRITTEN)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "settings.json").write_text(json.dumps(dataclasses.asdict(settings), indent=1))
        corpus.save(self.path / "corpus")
        tokenizer.save_pretrained(self.path / "tokenizer")
        probe.save(self.path / "probe.safetensors")

    def resumed_update(self, settings: Any) -> int:
        """Return the number of updates that ``resume_file`` has received.

        Raises:
            SystemExit: There is nothing to resume, it cannot be read or holds code, or the settings are not those of
                the run.
        """
        if not self.resume_file.is_file():
            raise SystemExit(f"--resume: {self.resume_file} does not exist; leave it out to start at update 0")
        before = json.loads((self.path / "settings.json").read_text())
        if changed := changed_settings(before, dataclasses.asdict(settings), FREE_ON_RESUME):
            raise SystemExit(f"--resume: {changed}. Give the settings of the run, or start a new one elsewhere")
        try:
            checkpoint = torch.load(self.resume_file, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            cause = f"{self.resume_file} cannot be read ({refusal(error)})"
            raise SystemExit(f"--resume: {cause}; start a new run elsewhere") from error
        return int(checkpoint["global_step"])


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> str:
    """Return which settings have changed, in words; empty where none has but those that are ``free`` to."""
    changed = [key for key in now if key not in free and before.get(key) != now[key]]
    return ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed)


def remove(folder: Path, patterns: Collection[str]) -> None:
    """Remove the files and folders of a folder whose names match one of the patterns."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
