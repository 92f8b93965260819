"""The settings of the post-training recipes: what is trained and what is measured."""

from __future__ import annotations

import dataclasses

from training.arguments import setting
from training.probe_settings import ProbeSettings

#: Settings that may differ between a stage and its continuation: where it runs and what it prints.
FREE_ON_RESUME = frozenset(
    {
        *("output_dir", "overwrite", "threads", "use_cpu", "local_rank", "ddp_backend", "ddp_timeout"),
        *("report_to", "run_name", "project", "disable_tqdm", "logging_dir", "log_level", "log_level_replica"),
        *("log_on_each_node", "logging_strategy", "logging_steps", "logging_first_step"),
        *("save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
        *("dataloader_num_workers", "dataloader_pin_memory", "skip_memory_metrics"),
    }
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

    probe_dataset: str | None = setting(
        None, "hub name or file of general text; default: that of base, or of the corpus"
    )
    probe_config: str | None = setting(None, "configuration of a hub data set")
    probe_text_column: str = setting("text", "column that holds the general text")
    per_decade: int = setting(0, "log-spaced measurements a tenfold of updates")
    every: int | None = setting(None, "updates between measurements; default: a fiftieth of the run")
