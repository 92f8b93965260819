"""The pretraining recipe on a model of a few thousand parameters: what a run leaves behind, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain import PretrainSettings, make_parser
from pretrain import main as pretrain
from training.language_model import SaveModel, SeededBatches
from training.run_folder import RunFolder
from transformers import AutoModelForCausalLM, AutoTokenizer

from geomcallbacks import ProbeSet, Schedule, read_records

ROOT = Path(__file__).parents[1]
UPDATES = 12


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 150 documents, which the recipe reads instead of the standard library."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "return", "def", "self", "value", "import", "for"]
    with path.open("w") as file:
        for _ in range(150):
            text = "\n".join(" ".join(rng.choices(words, k=8)) + f" {rng.randrange(10**4)}" for _ in range(12))
            file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def micro(texts: Path) -> Callable[..., PretrainSettings]:
    """Settings of a run of seconds."""

    def settings(output_dir: Path, **changed: Any) -> PretrainSettings:
        values = {
            "output_dir": str(output_dir),
            "dataset": str(texts),
            "vocab_size": 300,
            "hidden_size": 16,
            "layers": 1,
            "updates": UPDATES,
            "batch_size": 4,
            "seq_length": 16,
            "warmup": 4,
            "log_every": 1,
            "threads": 1,
            "probe_rows": 24,
            "probe_length": 16,
            "positions": "4",
            "alpha_first": 2,
            "alpha_last": 12,
            "accelerator": "cpu",
            "wandb": "disabled",
        }
        return PretrainSettings(**(values | changed))

    return settings


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module", params=["neox", "olmo2"])
def run(
    request: pytest.FixtureRequest, micro: Callable[..., PretrainSettings], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / f"shape-{request.param}"
    pretrain(micro(folder, architecture=request.param))
    return folder


def test_geometry_is_measured_and_saved_at_the_scheduled_updates(run: Path) -> None:
    records = read_records(run / "geometry.jsonl")
    steps = Schedule().steps(UPDATES)
    assert [record["step"] for record in records] == steps
    assert {record["fingerprint"] for record in records} == {ProbeSet.load(run / "probe.safetensors").fingerprint}
    assert all(record["n"] == 96 and record["d"] == 16 for record in records)
    assert all(record["tokens"] == record["step"] * 4 * 16 for record in records)
    assert all(math.isfinite(record["rankme"]) and math.isfinite(record["alpha_req"]) for record in records)
    assert len({record["rankme"] for record in records}) == len(records)  # the weights moved between them
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [f"step-{step:06d}" for step in steps]


def test_a_checkpoint_loads_and_is_of_its_update(run: Path) -> None:
    first = weights(run / "checkpoints" / "step-000000")
    second = weights(run / "checkpoints" / "step-000002")
    assert first.keys() == second.keys()
    assert not equal(first, second)
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / f"step-{UPDATES:06d}")
    assert model.config.model_type == {"shape-neox": "gpt_neox", "shape-olmo2": "olmo2"}[run.name]
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoints" / f"step-{UPDATES:06d}")
    assert model.config.vocab_size == len(tokenizer) == 300
    assert tokenizer.decode(tokenizer("alpha beta")["input_ids"]) == "alpha beta"
    # What was measured live can be measured again: the last hidden states of the probe give the recorded trace.
    probe = ProbeSet.load(run / "probe.safetensors")
    chosen = torch.tensor([math.ceil(16 * j / 4) - 1 for j in range(1, 5)])
    with torch.no_grad():
        hidden = model.eval().base_model(probe.input_ids_nt).last_hidden_state[:, chosen].flatten(0, 1).double()
    assert hidden.var(0).sum().item() == pytest.approx(read_records(run / "geometry.jsonl")[-1]["trace"], rel=1e-5)


def test_loss_is_kept_at_its_update_and_the_figure_is_drawn(run: Path) -> None:
    with (run / "loss" / "from_000000" / "metrics.csv").open(newline="") as file:
        losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}
    assert sorted(losses) == list(range(UPDATES))
    assert losses[0] == pytest.approx(math.log(300), rel=0.05)
    assert (run / "geometry.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((run / "corpus" / "manifest.json").read_text())
    assert manifest["source"]["name"] == "texts.jsonl"
    assert json.loads((run / "settings.json").read_text())["updates"] == UPDATES


class Interrupted(RuntimeError):
    """Stands for the kill of a run."""


class KilledAt7(SaveModel):
    """Ends the run in its seventh update: by then the checkpoint is of the fifth."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        if trainer.global_step == 7:
            raise Interrupted


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    micro: Callable[..., PretrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    # Several passes over few rows, so that the order of a later pass is tested as well.
    settings = micro(tmp_path / "whole", updates=50, accumulate=accumulate, batch_size=64, learning_rate=1e-2)
    pretrain(settings)
    broken = dataclasses.replace(settings, output_dir=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.SaveModel", KilledAt7)
        with pytest.raises(Interrupted):
            pretrain(broken)
    with pytest.raises(SystemExit, match=r"learning_rate was 0\.01, is 0\.02"):
        pretrain(dataclasses.replace(broken, resume=True, learning_rate=2e-2))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pretrain(dataclasses.replace(broken, resume=True))
    assert not [str(warning.message) for warning in seen if "resumable" in str(warning.message)]

    whole, resumed = tmp_path / "whole", tmp_path / "broken"
    assert equal(*(weights(folder / "checkpoints" / "step-000050") for folder in (whole, resumed)))
    curves = [
        [(r["step"], r["rankme"], r["alpha_req"]) for r in read_records(folder / "geometry.jsonl")]
        for folder in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    losses = [RunFolder(folder).loss() for folder in (whole, resumed)]
    assert [update for update, _ in losses[0]] == list(range(1, 51))
    assert losses[0] == losses[1]


def test_a_finished_run_is_neither_overwritten_nor_mixed(
    micro: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    settings = micro(tmp_path, updates=3)
    with pytest.raises(SystemExit, match=r"--resume: .*last\.ckpt does not exist"):
        pretrain(dataclasses.replace(settings, resume=True))
    (tmp_path / "notes.txt").write_text("mine")
    pretrain(settings)
    with pytest.raises(SystemExit, match="--overwrite"):
        pretrain(settings)
    pretrain(dataclasses.replace(settings, overwrite=True, updates=2))
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, 1, 2]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    # A run may replace the one whose corpus and tokenizer it reads.
    own = {"dataset": str(tmp_path / "corpus" / "corpus.parquet"), "tokenizer": str(tmp_path / "tokenizer")}
    pretrain(dataclasses.replace(settings, overwrite=True, updates=1, **own))
    assert [record["step"] for record in read_records(tmp_path / "geometry.jsonl")] == [0, 1]
    assert not (tmp_path / "geometry-2.jsonl").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_model_config_and_tokenizer_replace_shape_and_vocabulary(
    micro: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    shape = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8,
    }
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    pretrain(micro(tmp_path / "a", updates=2, model_config=str(tmp_path / "shape.json")))
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "checkpoints" / "step-000002").config
    assert (config.model_type, config.vocab_size, config.num_key_value_heads) == ("llama", 300, 1)
    assert config.max_position_embeddings == 16  # the rows are longer than the shape allows

    given = {"model_config": str(tmp_path / "shape.json"), "tokenizer": str(tmp_path / "a" / "tokenizer")}
    pretrain(micro(tmp_path / "b", updates=2, checkpoints="last", **given))
    saved = list((tmp_path / "b" / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step-000002"]
    assert AutoModelForCausalLM.from_pretrained(saved[0]).config.vocab_size == 1000  # padded, as Pythia's is


def test_precision_of_the_trainer_reaches_the_measurement(
    micro: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    pretrain(micro(tmp_path, updates=2, precision="bf16-mixed"))
    assert {record["precision"] for record in read_records(tmp_path / "geometry.jsonl")} == {"bf16"}


def test_yaml_sets_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("learning_rate: 5e-4\nupdates: 7\nseed: 3\noverwrite: true\nevery: null\n")
    settings = make_parser().parse([f"--config={tmp_path / 'a.yaml'}", "--seed", "4", "--streaming"])
    assert (settings.learning_rate, settings.updates, settings.seed) == (5e-4, 7, 4)
    assert (settings.overwrite, settings.streaming, settings.every) == (True, True, None)
    assert settings.batch_size == PretrainSettings().batch_size


@pytest.mark.parametrize(
    ("yaml", "arguments", "message"),
    [
        ("lerning_rate: 1", [], "unknown key lerning_rate (did you mean learning_rate?)"),
        ("xyzzy: 1", [], "unknown key xyzzy (--help lists the settings)"),
        ("updates: many", [], "invalid int value: 'many'"),
        ("updates: [1, 2]", [], "updates takes one value, not [1, 2]"),
        ("architecture: gpt5", [], "architecture='gpt5' is not one of"),
        ("- updates", [], "give a mapping"),
        ("seed: 1", ["--updatse", "3"], "unknown argument --updatse (did you mean updates?)"),
        ("seed: 1", ["--update", "3"], "unknown argument --update (did you mean updates?)"),
        ("seed: 1", ["extra"], "unknown argument extra"),
        ("seed: 1", ["--wandb", "sometimes"], "invalid choice: 'sometimes'"),
    ],
)
def test_unknown_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], yaml: str, arguments: list[str], message: str
) -> None:
    (tmp_path / "a.yaml").write_text(yaml)
    with pytest.raises(SystemExit) as refused:
        make_parser().parse(["--config", str(tmp_path / "a.yaml"), *arguments])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted((ROOT / "recipes" / "configs").glob("pretrain_*.yaml")), ids=lambda p: p.stem)
def test_presets_hold_known_settings_and_a_window_that_fits(preset: Path) -> None:
    settings = make_parser().parse(["--config", str(preset)])
    assert settings.alpha_last <= settings.hidden_size
    assert settings.probe_rows * int(settings.positions) >= 4 * settings.hidden_size
    assert settings.dataset is None
    assert settings.tokenizer is None


def test_batches_do_not_depend_on_the_number_of_devices_or_on_where_a_run_starts() -> None:
    def updates(world_size: int, accumulate: int, start: int = 0, seed: int = 0) -> list[list[int]]:
        shares = [
            list(SeededBatches(10, 8, 5, accumulate=accumulate, rank=r, world_size=world_size, seed=seed, start=start))
            for r in range(world_size)
        ]
        batches = [[row for share in shares for row in share[i]] for i in range(len(shares[0]))]
        return [
            [row for batch in batches[i : i + accumulate] for row in batch] for i in range(0, len(batches), accumulate)
        ]

    alone = updates(1, 1)
    assert len(alone) == 5
    assert sorted(row for update in alone for row in update) == sorted(
        list(range(10)) * 4
    )  # 40 rows: four passes over ten
    flat = [row for update in alone for row in update]
    assert sorted(flat[:10]) == sorted(flat[10:20])
    assert flat[:10] != flat[10:20]  # each pass has its own order
    assert updates(2, 2) == updates(4, 1) == updates(1, 4) == alone
    assert updates(2, 1, start=3) == alone[3:]
    assert updates(1, 1, seed=1) != alone
    with pytest.raises(ValueError, match=r"batch_size=8.*multiple of 3"):
        SeededBatches(10, 8, 5, world_size=3)


def test_accelerate_launch_runs_the_recipe_and_names_its_files(texts: Path, tmp_path: Path) -> None:
    settings = {
        "dataset": texts, "vocab_size": 300, "hidden_size": 16, "layers": 1, "updates": 4, "batch_size": 4,
        "seq_length": 16, "probe_rows": 24, "probe_length": 16, "alpha_first": 2, "alpha_last": 12,
        "accelerator": "cpu", "threads": 1,
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "recipes/pretrain.py"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "ACCELERATE_"))}
    environment |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--config", str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path / "run")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["step"] for record in read_records(tmp_path / "run" / "geometry.jsonl")] == [0, 1, 2, 3, 4]
    (wandb_run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(wandb_run.glob("*.wandb"))
    for needed in ("geometry.png", "geometry.jsonl", "no phase stands out", "wandb leet ", "wandb sync "):
        assert needed in done.stdout
    named = done.stdout.split("wandb sync ")[1].split()[0]
    assert (ROOT / named).resolve() == wandb_run.resolve()
