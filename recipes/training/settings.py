"""The settings that the recipes share: how probes are read, and what a post-training stage trains and measures."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.arguments import setting

#: Settings that may differ between a stage and its continuation: where it runs and what it prints.
FREE_ON_RESUME = (
    *("output_dir", "overwrite", "threads", "use_cpu", "local_rank", "ddp_backend", "ddp_timeout"),
    *("report_to", "run_name", "project", "disable_tqdm", "logging_dir", "log_level", "log_level_replica"),
    *("log_on_each_node", "logging_strategy", "logging_steps", "logging_first_step"),
    *("save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
    *("dataloader_num_workers", "dataloader_pin_memory", "skip_memory_metrics"),
)


@dataclasses.dataclass
class ProbeSettings:
    """How many rows a probe has, and how they are read."""

    probe_rows: int = setting(256, "rows of a probe")
    probe_length: int = setting(64, "tokens of a row of the probe, where it is not the base's")
    positions: str = setting("8", "last, all, mean, or how many positions of a row are read")
    probe_batch: int = setting(32, "rows of the probe that go through the model together")
    alpha_first: int = setting(11, "first rank of the window of alpha")
    alpha_last: int = setting(100, "last rank of the window of alpha")

    def read_positions(self) -> str | int:
        """Return ``positions`` as the callbacks take it."""
        return int(self.positions) if self.positions.isdigit() else self.positions

    def geometry_settings(self) -> dict[str, Any]:
        """Return the settings of a geometry callback that say how probes are read."""
        return dict(
            positions=self.read_positions(),
            alpha_window=(self.alpha_first, self.alpha_last),
            batch_size=self.probe_batch,
        )


@dataclasses.dataclass
class StageSettings(ProbeSettings):
    """What is trained and what is measured; how it is trained is TRL's own configuration."""

    base: str | None = setting(None, "run folder of pretrain.py: its corpus, its probe, and its last weights")
    model: str | None = setting(None, "start weights: hub name, model folder or stage folder; default: those of base")
    model_revision: str | None = setting(None, "revision of a hub model")
    gguf_file: str | None = setting(None, "file of --model that holds the weights in GGUF format")
    dtype: str = setting("float32", "type of the weights in memory")
    attention: str = setting("sdpa", "attn_implementation of Transformers")
    lora_rank: int = setting(0, "rank of LoRA adapters on all linear layers; 0 trains all weights")
    lora_alpha: int = setting(32, "scale of the LoRA adapters")
    overwrite: bool = setting(False, "replace the stage that the output folder holds")
    threads: int | None = setting(None, "CPU threads of torch; accelerate launch leaves one")

    dataset: str | None = setting(None, "hub name, file or folder; default: cut from the corpus of base, or generated")
    dataset_config: str | None = setting(None, "configuration of a hub data set")
    dataset_revision: str | None = setting(None, "revision of a hub data set")
    dataset_split: str = setting("train", "split that is trained on")
    test_dataset: str | None = setting(None, "in-distribution test; default: test_split of dataset")
    test_split: str = setting("test", "split of the in-distribution test")
    ood_dataset: str | None = setting(None, "out-of-distribution test; default: cut from the corpus of base")
    ood_config: str | None = setting(None, "configuration of a hub data set")
    ood_revision: str | None = setting(None, "revision of a hub data set")
    ood_split: str = setting("train", "split of the out-of-distribution test")
    worked_problems: int = setting(0, "generated problems with worked solutions, added to the offline pairs")
    train_rows: int | None = setting(None, "train on at most so many rows")
    test_rows: int = setting(256, "rows of each test, at most")
    test_length: int = setting(128, "tokens of a test row; longer ones are cut")
    test_batch: int = setting(64, "rows of a test that go through the model together")

    probe_dataset: str | None = setting(None, "hub name or file of general text; default: of base, or of the corpus")
    probe_config: str | None = setting(None, "configuration of a hub data set")
    probe_text_column: str = setting("text", "column that holds the general text")
    per_decade: int = setting(0, "log-spaced measurements a tenfold of updates")
    every: int | None = setting(None, "updates between measurements; default: a fiftieth of the run")
