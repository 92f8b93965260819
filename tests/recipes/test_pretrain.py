"""The pretraining recipe on a model of a few thousand parameters: what a run leaves behind, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import micro
import pytest
from pretrain import PretrainSettings, devices_of
from pretrain import main as pretrain
from training.language_model import SaveModel, SeededBatches
from transformers import AutoModelForCausalLM, AutoTokenizer

from geomcallbacks import ProbeSet, Schedule, read_records
from geomcallbacks.report.loss import find_loss

ROOT = Path(__file__).parents[2]
UPDATES = 12


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module", params=["neox", "olmo2"])
def run(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / f"shape-{request.param}"
    pretrain(micro.pretraining(folder, texts, architecture=request.param))
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
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / f"step-{UPDATES:06d}")
    assert model.config.model_type == {"shape-neox": "gpt_neox", "shape-olmo2": "olmo2"}[run.name]
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoints" / f"step-{UPDATES:06d}")
    assert model.config.vocab_size == len(tokenizer) == 300
    assert tokenizer.decode(tokenizer("alpha beta")["input_ids"]) == "alpha beta"
    # What was measured live can be measured again: the last hidden states of the probe give the recorded trace.
    for record in read_records(run / "geometry.jsonl"):
        trace = micro.trace_of(run / "checkpoints" / f"step-{record['step']:06d}", run / "probe.safetensors")
        assert trace == pytest.approx(record["trace"], rel=1e-5)


def test_loss_is_kept_at_its_update_and_the_figure_is_drawn(run: Path) -> None:
    losses = dict(find_loss(run / "geometry.jsonl"))
    assert list(losses) == list(range(1, UPDATES + 1))
    assert losses[1] == pytest.approx(math.log(300), rel=0.05)
    assert (run / "geometry.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "corpus" / "manifest.json").read_text())["source"]["name"] == "texts.jsonl"
    assert json.loads((run / "settings.json").read_text())["updates"] == UPDATES


class KilledAt7(SaveModel):
    """Ends the run in its seventh update: by then the checkpoint is of the fourth."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        if trainer.global_step == 7:
            raise micro.Interrupted


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several passes over few rows, so that the order of a later pass is tested as well.
    size = {"updates": 40, "accumulate": 2, "batch_size": 64, "learning_rate": 1e-2}
    whole = micro.pretraining(tmp_path / "whole", texts, **size)
    pretrain(whole)
    broken = dataclasses.replace(whole, output_dir=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.SaveModel", KilledAt7)
        with pytest.raises(micro.Interrupted):
            pretrain(broken)
    with pytest.raises(SystemExit, match=r"learning_rate was 0\.01, is 0\.02"):
        pretrain(dataclasses.replace(broken, resume=True, learning_rate=2e-2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*resumable")
        pretrain(dataclasses.replace(broken, resume=True))
    folders = [tmp_path / "whole", tmp_path / "broken"]
    assert micro.equal(*(micro.weights(folder / "checkpoints" / "step-000040") for folder in folders))
    records = [read_records(folder / "geometry.jsonl") for folder in folders]
    curves = [[(r["step"], r["rankme"], r["alpha_req"]) for r in found] for found in records]
    assert curves[0] == curves[1]
    losses = [find_loss(folder / "geometry.jsonl") for folder in folders]
    assert [update for update, _ in losses[0]] == list(range(1, 41))
    assert losses[0] == losses[1]


def test_a_finished_run_is_neither_overwritten_nor_mixed(texts: Path, tmp_path: Path) -> None:
    settings = micro.pretraining(tmp_path, texts, updates=3, precision="bf16-mixed")
    with pytest.raises(SystemExit, match=r"--resume: .*last\.ckpt does not exist"):
        pretrain(dataclasses.replace(settings, resume=True))
    (tmp_path / "mine.jsonl").write_text("mine")
    pretrain(settings)
    with pytest.raises(SystemExit, match="--overwrite"):
        pretrain(settings)
    # A run may replace the one whose corpus and tokenizer it reads.
    own = {"dataset": str(tmp_path / "corpus" / "corpus.parquet"), "tokenizer": str(tmp_path / "tokenizer")}
    pretrain(dataclasses.replace(settings, overwrite=True, updates=2, **own))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"geometry.jsonl", "mine.jsonl"}
    # The precision of the trainer reaches the measurement.
    found = [(record["step"], record["precision"]) for record in read_records(tmp_path / "geometry.jsonl")]
    assert found == [(0, "bf16"), (1, "bf16"), (2, "bf16")]


def test_model_config_and_tokenizer_replace_shape_and_vocabulary(texts: Path, tmp_path: Path) -> None:
    shape = {
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8,
    }  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    trained = str(tmp_path / "run" / "tokenizer")  # by the first run
    for tokenizer, vocabulary in ((None, 300), (trained, 1000)):  # padded, as Pythia's is
        given = {"model_config": str(tmp_path / "shape.json"), "tokenizer": tokenizer, "overwrite": True}
        pretrain(micro.pretraining(tmp_path / "run", texts, updates=2, checkpoints="last", **given))
        (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
        config = AutoModelForCausalLM.from_pretrained(saved).config
        assert (saved.name, config.model_type, config.vocab_size) == ("step-000002", "llama", vocabulary)
        assert config.max_position_embeddings == 24  # the probe's rows are longer than the shape allows


def test_batches_do_not_depend_on_the_number_of_devices_or_on_where_a_run_starts() -> None:
    def updates(world_size: int, accumulate: int, start: int = 0, seed: int = 0) -> list[list[int]]:
        settings = PretrainSettings(batch_size=8, updates=5, accumulate=accumulate, seed=seed)
        place = {"world_size": world_size, "start": start}
        shares = [list(SeededBatches(10, settings, rank=rank, **place)) for rank in range(world_size)]
        batches = [[row for share in shares for row in share[i]] for i in range(len(shares[0]))]
        joined = (batches[i : i + accumulate] for i in range(0, len(batches), accumulate))
        return [[row for batch in update for row in batch] for update in joined]

    alone = updates(1, 1)
    flat = [row for update in alone for row in update]
    assert (len(alone), len(flat)) == (5, 40)  # four passes over ten rows
    for first in range(0, 40, 10):
        assert sorted(flat[first : first + 10]) == list(range(10))
    assert flat[:10] != flat[10:20]  # each pass has its own order
    assert updates(2, 2) == updates(4, 1) == updates(1, 4) == alone
    assert updates(2, 1, start=3) == alone[3:]
    assert updates(1, 1, seed=1) != alone
    with pytest.raises(ValueError, match=r"batch_size=8.*multiple of 3"):
        SeededBatches(10, PretrainSettings(batch_size=8), world_size=3)


@pytest.mark.parametrize(
    ("asked", "environment", "wanted"),
    [
        ("auto", {}, ("auto", 1)),
        ("auto", {"ACCELERATE_MIXED_PRECISION": "no"}, (1, 1)),
        ("8", {"ACCELERATE_MIXED_PRECISION": "no"}, ("8", 1)),
        ("auto", {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)),
        ("2", {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, ("2", 1)),
    ],
)
def test_as_many_devices_are_taken_as_the_launcher_was_told(
    asked: str, environment: dict[str, str], wanted: Any
) -> None:
    """Of one process too, which accelerate starts without ranks."""
    assert devices_of(asked, environment) == wanted


def test_accelerate_launch_runs_the_recipe_and_names_its_files(texts: Path, tmp_path: Path) -> None:
    settings, file = micro.pretraining(tmp_path / "run", texts, updates=4, wandb="auto"), tmp_path / "a.yaml"
    file.write_text(json.dumps(vars(settings)))  # which is YAML
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "recipes/pretrain.py"]
    shown = subprocess.check_output([*command, "--config", str(file)], cwd=ROOT, text=True, timeout=300)
    assert [record["step"] for record in read_records(tmp_path / "run" / "geometry.jsonl")] == [0, 1, 2, 3, 4]
    (wandb_run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(wandb_run.glob("*.wandb"))
    for needed in ("geometry.png", "geometry.jsonl", "RankMe", "wandb leet ", "wandb sync "):
        assert needed in shown
    named = shown.split("wandb sync ")[1].split()[0]
    assert (ROOT / named).resolve() == wandb_run.resolve()
