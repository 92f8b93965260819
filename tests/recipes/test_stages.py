"""Stages of a model of some thousand parameters: what they go on from, leave alone, read, and refuse."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import grpo
import micro
import pytest
import torch
from safetensors.torch import load_file
from text import corpus
from training import posttrain, texts
from transformers import TrainerCallback

from geomcallbacks import read_records

pytestmark = pytest.mark.usefixtures("even_length")


def curve(file: Path) -> list[dict[str, Any]]:
    """Records without what depends on the machine."""
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in read_records(file)]


def places(file: Path) -> list[tuple[int, str]]:
    return [(record["step"], record["probe"]) for record in read_records(file)]


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything below a folder with its size and the time of its last change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("recipe", list(micro.MODULES))
def test_a_finished_stage_is_not_run_again(
    chain: dict[str, Path], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(chain[recipe])
    # What only says where it runs and what it prints may differ.
    micro.run(recipe, chain[recipe], **micro.start_of(chain, recipe), logging_steps=3, save_steps=4)
    assert "finished already; --overwrite True runs it again" in capsys.readouterr().out
    assert state_of(chain[recipe]) == before


def test_changed_settings_are_refused_by_name(chain: dict[str, Path]) -> None:
    before = state_of(chain["sft"])
    refused = r"learning_rate was 0\.01, is 0\.02, seed was 42, is 7\. Give another folder, or --overwrite True"
    with pytest.raises(SystemExit, match=f"test_rows was 12, is 13, {refused}"):
        micro.run("sft", chain["sft"], base=chain["base"], learning_rate=2e-2, test_rows=13, seed=7)
    assert state_of(chain["sft"]) == before


def test_overwrite_replaces_the_stage_and_nothing_else(chain: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "grpo"
    shutil.copytree(chain["grpo"], folder)
    (folder / "mine.jsonl").write_text("mine")
    micro.run("grpo", folder, **micro.start_of(chain, "grpo"), overwrite=True, max_steps=2, many_samples=2)
    assert [r["step"] for r in read_records(folder / "behaviour.jsonl")] == [0, 2]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert "pass@4" not in json.loads((folder / "rollouts.json").read_text())["start"]
    assert places(folder / "crossed.jsonl")[-1] == (2, "end_rollouts")
    assert not list(folder.glob("*-2.jsonl"))
    assert (folder / "mine.jsonl").read_text() == "mine"


class Kill(TrainerCallback):
    """Ends the run after its third update: by then the checkpoint is of the second."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise micro.Interrupted


@pytest.mark.parametrize(("recipe", "rank"), [("dpo", 0), ("grpo", 0), ("sft", 2)])
def test_an_interrupted_stage_ends_where_the_uninterrupted_one_does(
    chain: dict[str, Path], recipe: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = tmp_path / recipe, {**micro.start_of(chain, recipe), "lora_rank": rank}
    whole = micro.run(recipe, tmp_path / "whole", **settings) if rank else chain[recipe]
    train = posttrain.Stage.train
    with monkeypatch.context() as patch:
        patch.setattr(posttrain.Stage, "train", lambda *given: given[1].add_callback(Kill()) or train(*given))
        with pytest.raises(micro.Interrupted):
            micro.run(recipe, folder, **settings)
    assert not (folder / "finished.json").exists()
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    (folder / "checkpoint-3").mkdir()  # torn: a kill came before its trainer_state.json
    (folder / "checkpoint-3" / "model.safetensors").touch()
    micro.run(recipe, folder, **settings)
    headers = [line for line in micro.lines_of(folder / "geometry.jsonl") if line["kind"] == "header"]
    assert headers[-1]["resumed_from"] == 2

    # Killed again once it was trained, before its weights were saved: no update is made in addition.
    (folder / "finished.json").unlink()
    shutil.rmtree(folder / "model")
    micro.run(recipe, folder, **settings)
    assert micro.equal(micro.weights(folder / "model"), micro.weights(whole / "model"))
    names = ["geometry.jsonl", "behaviour.jsonl", *(["crossed.jsonl"] if recipe == "grpo" else [])]
    assert sorted(path.name for path in folder.glob("[bcg]*.jsonl")) == sorted(names)  # nothing was begun anew
    for name in names:
        assert curve(folder / name) == curve(whole / name), name
    if recipe == "grpo":
        assert (folder / "rollouts.json").read_text() == (whole / "rollouts.json").read_text()


@pytest.mark.parametrize("recipe", ["dpo", "grpo"])
def test_lora_trains_adapters_alone_and_saves_them_merged(chain: dict[str, Path], recipe: str, tmp_path: Path) -> None:
    folder = micro.run(recipe, tmp_path / recipe, **micro.start_of(chain, recipe), lora_rank=2, max_steps=2)
    start, end = micro.start_weights(chain, recipe), micro.weights(folder / "model")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    linear = {name for name in start if name.endswith("weight") and start[name].ndim == 2 and "embed" not in name}
    assert moved <= linear
    assert len([name for name in moved if "query_key_value" in name or "dense" in name]) >= 4
    trained = load_file(folder / "checkpoint-2" / "adapter_model.safetensors")
    assert all("lora_" in name for name in trained)
    assert not (folder / "checkpoint-2" / "model.safetensors").exists()
    assert not (folder / "model" / "adapter_config.json").exists()
    # What was measured with adapters is what the merged weights give.
    last = [r for r in read_records(folder / "geometry.jsonl") if r["probe"] == "general"][-1]
    trace = micro.trace_of(folder / "model", chain["base"] / "probe.safetensors")
    assert trace == pytest.approx(last["trace"], rel=1e-4)
    first = read_records(folder / "behaviour.jsonl")[0]
    assert first.get("preference/reward_margin", 0) == pytest.approx(0, abs=1e-4)


def test_a_model_folder_alone_is_enough(
    chain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a base the corpus is the standard library, whose place a small folder takes here."""
    library = tmp_path / "library"
    library.mkdir()
    for seed in range(150):
        (library / f"module_{seed:03d}.py").write_text(micro.module_text(seed))
    monkeypatch.setattr(texts, "offline_corpus", functools.partial(corpus.offline_corpus, library))
    folder = micro.run("dpo", tmp_path / "dpo", model=chain["sft"] / "model", max_steps=2)
    source = corpus.Corpus.load(folder / "corpus").source
    assert (source["name"], source["arithmetic_share"]) == ("python-files", 0.0)
    assert places(folder / "geometry.jsonl") == [(0, "general"), (0, "task"), (2, "general"), (2, "task")]
    assert read_records(folder / "geometry.jsonl")[0]["n"] == 96


WHAT = "\n\nHuman: What is {0}?\n\nAssistant: "
HH = [{"chosen": WHAT.format(i) + f"It is {i}.", "rejected": WHAT.format(i) + "No idea."} for i in range(40)]
ALPACA = [{"instruction": f"Name word {i}.", "input": "", "output": "alpha"} for i in range(20)]
GSM8K = [{"question": f"{i} boxes of 1002?", "answer": f"That is it.\n#### {i * 1002:,}"} for i in range(40)]
TEXTS = [{"text": micro.module_text(1000 + i)} for i in range(40)]


def local_files(base: Path, folder: Path, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write local files in the columns of hub sets; return the settings that name them."""
    sets = {"ood_dataset": ALPACA, "probe_dataset": TEXTS, **rows}
    named = {key: micro.write_jsonl(folder / f"{key}.jsonl", value) for key, value in sets.items()}
    return {"model": base / "checkpoints" / "step-000012", "probe_length": 40, "max_steps": 2, **named}


def test_local_files_in_hh_rlhf_columns(base: Path, tmp_path: Path) -> None:
    settings = local_files(base, tmp_path, dataset=HH[:28], test_dataset=HH[28:])
    folder = micro.run("dpo", tmp_path / "dpo", **settings, train_rows=None)
    assert places(folder / "geometry.jsonl") == [(0, "general"), (0, "task"), (2, "general"), (2, "task")]
    finished = json.loads((folder / "finished.json").read_text())
    assert (finished["train_rows"], finished["test_rows"]) == (28, 12)
    assert not list(folder.glob("pairs_*"))
    assert not (folder / "corpus").exists()  # nothing is cut from the standard library


def test_local_files_in_gsm8k_columns_and_math_verify(base: Path, tmp_path: Path) -> None:
    given = local_files(base, tmp_path, dataset=GSM8K[:24], test_dataset=GSM8K[24:32], ood_problems=GSM8K[32:])
    folder = micro.run("grpo", tmp_path / "grpo", **given, verifier="math_verify")
    assert json.loads((folder / "finished.json").read_text())["train_rows"] == 24
    assert not (folder / "corpus").exists()
    settings, _ = grpo.make_parser().parse(micro.arguments("grpo", folder, **given))
    sets = grpo.problem_sets(settings, texts.Texts(settings, folder, None))
    assert sets == (GSM8K[:24], GSM8K[24:32], GSM8K[32:])
    for record in read_records(folder / "behaviour.jsonl"):  # judged on both, and no answer of this model is right
        assert (record["rollouts/reward"], record["rollouts_ood/reward"]) == (0.0, 0.0)


def test_a_stage_without_weights_is_refused_with_a_remedy(chain: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--base .*--model"):
        micro.run("sft", tmp_path / "a")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(SystemExit, match=r"--base .*no checkpoint.*pretrain\.py to its end"):
        micro.run("sft", tmp_path / "b", base=tmp_path / "unfinished")
    with pytest.raises(SystemExit, match=r"--model .*unfinished.*to its end"):
        micro.run("dpo", tmp_path / "c", base=chain["base"], model=tmp_path / "unfinished")


@pytest.mark.parametrize("recipe", ["dpo", "grpo"])
def test_a_reference_model_is_of_the_revision_that_is_trained(recipe: str, tmp_path: Path) -> None:
    """TRL loads it by the name of the policy, with these options; nothing is loaded here."""
    given = micro.arguments(recipe, tmp_path / recipe, model="owner/name", model_revision="v1")
    given += ["--model_init_kwargs", '{"attn_implementation": "eager"}']
    for _ in range(2):  # started again, its settings are those that it noted
        stage = posttrain.Stage(*micro.MODULES[recipe].make_parser().parse(given))
        assert stage.args.model_init_kwargs == {"attn_implementation": "eager", "revision": "v1"}
