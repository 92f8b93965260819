"""SFT, DPO and GRPO on a model of some thousand parameters: what a stage leaves behind, continues and refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpo
import micro
import pytest
import torch
from judging.rewards import Verifier
from safetensors.torch import load_file
from test_arithmetic import TEXT
from text import corpus
from text.arithmetic import read_answer
from text.data import to_problems
from training import posttrain
from transformers import AutoTokenizer, TrainerCallback

from geomcallbacks import GeometryRecord, ProbeSet, read_records

RECIPES = ["sft", "dpo", "grpo"]
STEPS = [0, 2, 4]

LOSSES = {"id/loss", "ood/loss", "general/loss"}
ROLLOUTS = ["reward", "pass@1", "distinct_answers", "answer_entropy", "distinct_1", "distinct_2", "no_answer", "length"]
PREFERENCE = ["accuracy", "margin", "accuracy_per_token", "margin_per_token", "reward_accuracy", "reward_margin"]
KEYS = {
    "sft": LOSSES,
    "dpo": LOSSES | {f"preference/{key}" for key in PREFERENCE},
    "grpo": LOSSES | {f"{name}/{key}" for name in ("rollouts", "rollouts_ood") for key in ROLLOUTS},
}
PROBES = {"sft": ["general", "task"], "dpo": ["general", "task"], "grpo": ["general", "task", "rollouts"]}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(grpo.VERIFIERS, "integer", lambda: micro.EVEN_LENGTH)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    yield micro.make_base(tmp_path_factory.mktemp("base"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """pretrain → SFT → DPO → GRPO."""
    root, found = tmp_path_factory.mktemp("chain"), {"base": base}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grpo.VERIFIERS, "integer", lambda: micro.EVEN_LENGTH)
        for recipe, start in (("sft", None), ("dpo", "sft"), ("grpo", "dpo")):
            found[recipe] = micro.run(recipe, root / recipe, base=base, model=start and root / start)
    return found


def start_of(chain: dict[str, Path], recipe: str) -> dict[str, Path | None]:
    """The settings that name where a stage of the chain starts."""
    return {"base": chain["base"], "model": {"sft": None, "dpo": chain["sft"], "grpo": chain["dpo"]}[recipe]}


def start_weights(chain: dict[str, Path], recipe: str) -> dict[str, torch.Tensor]:
    model = start_of(chain, recipe)["model"]
    return micro.weights(model / "model" if model else chain["base"] / "checkpoints" / "step-000012")


def measured(folder: Path, file: str = "geometry.jsonl") -> list[GeometryRecord]:
    return read_records(folder / file)


def header_of(folder: Path, file: str) -> dict[str, Any]:
    return json.loads((folder / file).read_text().splitlines()[0])


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("recipe", RECIPES)
def test_geometry_is_measured_on_every_probe_at_the_scheduled_updates(chain: dict[str, Path], recipe: str) -> None:
    records = measured(chain[recipe])
    assert [(r["step"], r["probe"]) for r in records] == [(step, probe) for step in STEPS for probe in PROBES[recipe]]
    assert all(math.isfinite(r["rankme"]) and math.isfinite(r["alpha_req"]) for r in records)
    assert {(r["d"], r["positions"], tuple(r["alpha_window"]), r["precision"]) for r in records} == {
        (16, 4, (2, 12), "fp32")
    }
    for probe in PROBES[recipe]:
        of_probe = [r for r in records if r["probe"] == probe]
        assert len({r["fingerprint"] for r in of_probe}) == 1
        assert len({r["rankme"] for r in of_probe}) == len(STEPS)  # the weights moved between them


@pytest.mark.parametrize("recipe", RECIPES)
def test_behaviour_is_measured_beside_geometry(chain: dict[str, Path], recipe: str) -> None:
    records = measured(chain[recipe], "behaviour.jsonl")
    assert [record["step"] for record in records] == STEPS
    for record in records:
        assert set(record) - {"kind", "step", "seconds"} == KEYS[recipe]
        assert all(math.isfinite(record[key]) for key in KEYS[recipe])
    assert len({record["general/loss"] for record in records}) == len(STEPS)
    measures = header_of(chain[recipe], "behaviour.jsonl")["measures"]
    assert set(measures) == {key.partition("/")[0] for key in KEYS[recipe]}
    assert all(measure["fingerprint"] for measure in measures.values())


def test_stages_hang_together(chain: dict[str, Path]) -> None:
    """Each starts from the weights with which the one before ended, and all are measured on the base's probe."""
    probe = ProbeSet.load(chain["base"] / "probe.safetensors").fingerprint
    records = {
        stage: [r for r in measured(chain[stage]) if r.get("probe", "general") in ("general", "probe")]
        for stage in ("sft", "dpo", "grpo")
    }
    assert {r["fingerprint"] for stage in records.values() for r in stage} == {probe}
    before = measured(chain["base"])[-1]
    for stage in RECIPES:
        first = records[stage][0]
        for metric in ("rankme", "alpha_req", "trace"):
            assert first[metric] == pytest.approx(before[metric], rel=1e-9), stage
        before = records[stage][-1]
    losses = {stage: header_of(chain[stage], "behaviour.jsonl")["measures"] for stage in RECIPES}
    for name in ("id", "ood", "general"):
        assert len({losses[stage][name]["fingerprint"] for stage in RECIPES}) == 1
    assert len({losses["sft"][name]["fingerprint"] for name in ("id", "ood", "general")}) == 3


def test_no_row_of_the_task_probe_ends_in_eos(chain: dict[str, Path]) -> None:
    """All of them would share its state."""
    settings = posttrain.StageSettings(base=str(chain["base"]), positions="2")
    stage = object.__new__(posttrain.Stage)
    stage.settings = settings
    rows = posttrain.Completions([[5, 6, 7]] * 2, [[8, 9, 1], [8, 9, 3]])
    probe = stage.completion_probe(rows, eos=1)
    assert probe.lengths_n.tolist() == [5, 6]
    assert probe.input_ids_nt.tolist() == [[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 9, 3]]


def test_the_general_loss_is_that_of_the_probe(chain: dict[str, Path]) -> None:
    """Against the plain loss of Transformers on the same rows."""
    from transformers import AutoModelForCausalLM

    probe = ProbeSet.load(chain["base"] / "probe.safetensors")
    model = AutoModelForCausalLM.from_pretrained(chain["sft"] / "model").eval()
    with torch.no_grad():
        loss = model(input_ids=probe.input_ids_nt, labels=probe.input_ids_nt).loss.item()
    assert measured(chain["sft"], "behaviour.jsonl")[-1]["general/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_saved_and_are_not_those_of_the_start(chain: dict[str, Path], recipe: str) -> None:
    start, end = start_weights(chain, recipe), micro.weights(chain[recipe] / "model")
    assert start.keys() == end.keys()
    assert not any(torch.equal(start[name], end[name]) for name in start if name.endswith("weight"))
    tokenizer = AutoTokenizer.from_pretrained(chain[recipe] / "model")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(chain["base"] / "tokenizer").get_vocab()
    finished = json.loads((chain[recipe] / "finished.json").read_text())
    assert (finished["device"], finished["processes"]) == ("CPU", 1)
    assert finished["train_rows"] > 10


def test_sft_learns_the_pairs(chain: dict[str, Path]) -> None:
    first, *_, last = measured(chain["sft"], "behaviour.jsonl")
    assert last["id/loss"] < first["id/loss"] - 0.3


def test_dpo_prefers_the_library_to_the_samples(chain: dict[str, Path]) -> None:
    first, *_, last = measured(chain["dpo"], "behaviour.jsonl")
    # Against its own start weights a model has no preference yet: that is what the reference must be.
    assert (first["preference/reward_accuracy"], first["preference/reward_margin"]) == (0.5, 0.0)
    assert last["preference/reward_margin"] > 1
    pairs = [json.loads(line) for line in (chain["dpo"] / "pairs_train.jsonl").read_text().splitlines()]
    assert pairs
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    library = {pair["prompt"] for pair in pairs}
    test = {json.loads(line)["prompt"] for line in (chain["dpo"] / "pairs_test.jsonl").read_text().splitlines()}
    assert test
    assert not library & test


def test_grpo_judges_many_rollouts_before_and_after(chain: dict[str, Path]) -> None:
    found = json.loads((chain["grpo"] / "rollouts.json").read_text())
    assert list(found) == ["start", "end"]
    assert set(found["start"]) == set(found["end"]) == {*ROLLOUTS, "pass@2", "pass@4", "self_bleu"}
    for scores in found.values():
        assert scores["pass@1"] == scores["reward"] <= scores["pass@2"] <= scores["pass@4"]
    assert found["start"] != found["end"]


def test_grpo_crosses_weights_with_rollouts(chain: dict[str, Path]) -> None:
    records = measured(chain["grpo"], "crossed.jsonl")
    assert [(r["step"], r["probe"]) for r in records] == [
        (step, probe) for step in (0, 4) for probe in ("start_rollouts", "end_rollouts")
    ]
    prints = {(r["step"], r["probe"]): r["fingerprint"] for r in records}
    assert prints[0, "start_rollouts"] == prints[4, "start_rollouts"] != prints[0, "end_rollouts"]
    assert prints[0, "end_rollouts"] == prints[4, "end_rollouts"]
    assert len({r["rankme"] for r in records}) == 4
    # The rollouts of the start are those that were measured along the run.
    along = [r for r in measured(chain["grpo"]) if r["probe"] == "rollouts"]
    assert prints[0, "start_rollouts"] == along[0]["fingerprint"]
    assert records[0]["rankme"] == pytest.approx(along[0]["rankme"], rel=1e-6)
    assert records[2]["rankme"] == pytest.approx(along[-1]["rankme"], rel=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_finished_stage_is_not_run_again(
    chain: dict[str, Path], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(chain[recipe])
    # What only says where it runs and what it prints may differ.
    micro.run(recipe, chain[recipe], **start_of(chain, recipe), logging_steps=3, save_steps=4)
    assert "finished already; --overwrite True runs it again" in capsys.readouterr().out
    assert state_of(chain[recipe]) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 2e-2}, r"learning_rate was 0\.01, is 0\.02\. Give another folder, or --overwrite True"),
        ({"test_rows": 13, "seed": 7}, r"test_rows was 12, is 13, seed was 42, is 7"),
        ({"lora_rank": 2}, "lora_rank was 0, is 2"),
    ],
)
def test_changed_settings_are_refused_by_name(chain: dict[str, Path], changed: dict[str, Any], message: str) -> None:
    before = state_of(chain["sft"])
    with pytest.raises(SystemExit, match=message):
        micro.run("sft", chain["sft"], base=chain["base"], **changed)
    assert state_of(chain["sft"]) == before


def test_overwrite_replaces_the_stage_and_nothing_else(chain: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "grpo"
    shutil.copytree(chain["grpo"], folder)
    mine = ["notes.txt", "mine.json", "mine.jsonl"]
    for name in mine:
        (folder / name).write_text("mine")
    start = start_of(chain, "grpo")
    micro.run("grpo", folder, **start, overwrite=True, max_steps=2, many_samples=2)
    assert [r["step"] for r in measured(folder, "behaviour.jsonl")] == [0, 2]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2"]
    assert "pass@4" not in json.loads((folder / "rollouts.json").read_text())["start"]
    assert [(r["step"], r["probe"]) for r in measured(folder, "crossed.jsonl")][-1] == (2, "end_rollouts")
    assert not list(folder.glob("*-2.jsonl"))
    assert [(folder / name).read_text() for name in mine] == ["mine"] * 3


class Interrupted(RuntimeError):
    """Stands for the kill of a run."""


class Kill(TrainerCallback):
    """Ends the run after its third update: by then the checkpoint is of the second."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise Interrupted


def interrupt(monkeypatch: pytest.MonkeyPatch, recipe: str, folder: Path, **settings: Any) -> None:
    """Runs a stage until it is killed."""
    callbacks = posttrain.Stage.callbacks
    with monkeypatch.context() as patch:
        patch.setattr(posttrain.Stage, "callbacks", lambda *given: [*callbacks(*given), Kill()])
        with pytest.raises(Interrupted):
            micro.run(recipe, folder, **settings)
    assert not (folder / "finished.json").exists()
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_stage_ends_where_the_uninterrupted_one_does(
    chain: dict[str, Path], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, start = tmp_path / recipe, start_of(chain, recipe)
    interrupt(monkeypatch, recipe, folder, **start)
    (folder / "checkpoint-3").mkdir()  # torn: a kill came before its trainer_state.json
    (folder / "checkpoint-3" / "model.safetensors").touch()
    micro.run(recipe, folder, **start)
    assert header_of_last_start(folder)["resumed_from"] == 2

    assert micro.equal(micro.weights(folder / "model"), micro.weights(chain[recipe] / "model"))
    for file in ("geometry.jsonl", "behaviour.jsonl", *(["crossed.jsonl"] if recipe == "grpo" else [])):
        whole, resumed = (without_times(measured(path, file)) for path in (chain[recipe], folder))
        assert resumed == whole, file
    assert not list(folder.glob("*-2.jsonl"))
    if recipe == "grpo":
        assert (folder / "rollouts.json").read_text() == (chain["grpo"] / "rollouts.json").read_text()


def header_of_last_start(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "geometry.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "header"][-1]


def without_times(records: list[GeometryRecord]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stage_that_ended_before_its_weights_were_saved_trains_no_further(
    chain: dict[str, Path], recipe: str, tmp_path: Path
) -> None:
    folder = tmp_path / recipe
    shutil.copytree(chain[recipe], folder)
    (folder / "finished.json").unlink()
    shutil.rmtree(folder / "model")
    before = without_times(measured(folder))
    micro.run(recipe, folder, **start_of(chain, recipe))
    assert micro.equal(micro.weights(folder / "model"), micro.weights(chain[recipe] / "model"))
    assert without_times(measured(folder)) == before
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_lora_trains_adapters_alone_and_saves_them_merged(chain: dict[str, Path], recipe: str, tmp_path: Path) -> None:
    folder = micro.run(recipe, tmp_path / recipe, **start_of(chain, recipe), lora_rank=2, max_steps=2)
    start, end = start_weights(chain, recipe), micro.weights(folder / "model")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    linear = {name for name in start if name.endswith("weight") and start[name].ndim == 2 and "embed" not in name}
    assert moved
    assert moved <= linear
    assert len([name for name in moved if "query_key_value" in name or "dense" in name]) >= 4
    trained = load_file(folder / "checkpoint-2" / "adapter_model.safetensors")
    assert all("lora_" in name for name in trained)
    assert not (folder / "checkpoint-2" / "model.safetensors").exists()
    assert not (folder / "model" / "adapter_config.json").exists()
    records = [r for r in measured(folder) if r["probe"] == "general"]
    assert [r["step"] for r in records] == [0, 2]
    assert records[0]["rankme"] != records[1]["rankme"]
    # What was measured with adapters is what the merged weights give.
    assert general_trace(chain["base"], folder / "model") == pytest.approx(records[1]["trace"], rel=1e-4)
    if recipe == "dpo":
        first = measured(folder, "behaviour.jsonl")[0]
        assert first["preference/reward_margin"] == pytest.approx(0, abs=1e-4)


def test_an_interrupted_stage_of_adapters_ends_where_the_uninterrupted_one_does(
    chain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = micro.run("sft", tmp_path / "whole", base=chain["base"], lora_rank=2)
    interrupt(monkeypatch, "sft", tmp_path / "broken", base=chain["base"], lora_rank=2)
    micro.run("sft", tmp_path / "broken", base=chain["base"], lora_rank=2)
    assert micro.equal(micro.weights(tmp_path / "broken" / "model"), micro.weights(whole / "model"))
    assert without_times(measured(tmp_path / "broken")) == without_times(measured(whole))
    # Killed while the weights were being merged: no update is made in addition.
    (tmp_path / "broken" / "finished.json").unlink()
    shutil.rmtree(tmp_path / "broken" / "model")
    micro.run("sft", tmp_path / "broken", base=chain["base"], lora_rank=2)
    assert micro.equal(micro.weights(tmp_path / "broken" / "model"), micro.weights(whole / "model"))


def general_trace(base: Path, model: Path) -> float:
    """Trace of the centred covariance at the four positions of each row of the base's probe."""
    from transformers import AutoModelForCausalLM

    ids_nt = ProbeSet.load(base / "probe.safetensors").input_ids_nt
    chosen = torch.tensor([math.ceil(ids_nt.shape[1] * j / 4) - 1 for j in range(1, 5)])
    with torch.no_grad():
        hidden_ntd = AutoModelForCausalLM.from_pretrained(model).eval().base_model(ids_nt).last_hidden_state
    return hidden_ntd[:, chosen].flatten(0, 1).double().var(0).sum().item()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_folder_alone_is_enough(
    chain: dict[str, Path], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a base the corpus is the standard library, whose place a small folder takes here."""
    library, built = micro.write_library(tmp_path / "library"), []

    def offline_corpus(**settings: Any) -> corpus.Corpus:
        built.append(settings)
        return corpus.offline_corpus(library, **settings)

    monkeypatch.setattr(posttrain, "offline_corpus", offline_corpus)
    model = chain["sft"] / "model"
    folder = micro.run(recipe, tmp_path / recipe, model=model, max_steps=2)
    assert built == [{"arithmetic_share": 0.0}]
    assert corpus.Corpus.load(folder / "corpus").source["name"] == "python-files"
    records = measured(folder)
    assert [(r["step"], r["probe"]) for r in records] == [(s, p) for s in (0, 2) for p in PROBES[recipe]]
    assert next(r["n"] for r in records if r["probe"] == "general") == 96
    assert not micro.equal(micro.weights(model), micro.weights(folder / "model"))


def test_offline_rows_come_from_the_parts_that_were_split_for_them(
    chain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base was pretrained on none of the text that later stages train or are tested on."""
    parts = corpus.Corpus.load(chain["base"] / "corpus")
    asked = []
    texts = corpus.Corpus.texts
    monkeypatch.setattr(corpus.Corpus, "texts", lambda self, part: asked.append(part) or texts(self, part))
    micro.run("sft", tmp_path / "sft", base=chain["base"], max_steps=1)
    assert set(asked) == {"sft", "id_test", "ood_test"}
    asked.clear()
    micro.run("dpo", tmp_path / "dpo", base=chain["base"], max_steps=1)
    assert set(asked) == {"preference", "id_test", "ood_test"}
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "dpo" / "pairs_train.jsonl").read_text().splitlines()]
    pretrained = "\n".join(document.text for document in parts.parts["pretrain"])
    cut = [prompt.split("Write a function. ")[1].split("\n")[0] for prompt in prompts]
    assert cut
    assert not [summary for summary in cut if summary in pretrained]


HH = [
    {
        "chosen": f"\n\nHuman: What is {i}?\n\nAssistant: It is {micro.WORDS[i % 10]}.",
        "rejected": f"\n\nHuman: What is {i}?\n\nAssistant: I do not know, {i}.",
    }
    for i in range(40)
]
ALPACA = [{"instruction": f"Name word {i}.", "input": "" if i % 2 else f"{i}", "output": "alpha"} for i in range(20)]
GSM8K = [
    {"question": f"{i} boxes of {1000 + i}?", "answer": f"{i} * {1000 + i} is it.\n#### {i * (1000 + i):,}"}
    for i in range(2, 42)
]
TEXTS = [{"text": micro.module_text(1000 + i)} for i in range(40)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[dict[str, Any]]], Path]:
    """Writes local files in the columns of hub sets; nothing may be cut from a corpus."""

    def forbidden(**_: Any) -> Any:
        raise AssertionError("the standard library is not asked for")

    monkeypatch.setattr(posttrain, "offline_corpus", forbidden)
    return lambda name, rows: micro.write_jsonl(tmp_path / f"{name}.jsonl", rows)


def general_files(hub: Callable[[str, list[dict[str, Any]]], Path], base: Path) -> dict[str, Any]:
    return {
        "model": base / "checkpoints" / "step-000012",
        "ood_dataset": hub("alpaca", ALPACA),
        "probe_dataset": hub("text", TEXTS),
        "probe_length": 40,
        "max_steps": 2,
    }


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_local_files_in_hh_rlhf_columns(
    base: Path, recipe: str, hub: Callable[[str, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    data = {"dataset": hub("train", HH[:28]), "test_dataset": hub("test", HH[28:])}
    folder = micro.run(recipe, tmp_path / recipe, **data, **general_files(hub, base), train_rows=None)
    assert [(r["step"], r["probe"]) for r in measured(folder)] == [(s, p) for s in (0, 2) for p in PROBES[recipe]]
    assert json.loads((folder / "finished.json").read_text())["train_rows"] == 28
    assert not list(folder.glob("pairs_*"))
    assert not (folder / "corpus").exists()
    assert set(measured(folder, "behaviour.jsonl")[-1]) >= KEYS[recipe]


def test_local_files_in_the_columns_prompt_chosen_rejected(
    base: Path, hub: Callable[[str, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"What is {i}?", "chosen": f" It is {micro.WORDS[i % 10]}.", "rejected": " No idea."}
        for i in range(30)
    ]
    data = {"dataset": hub("train", rows[:20]), "test_dataset": hub("test", rows[20:])}
    folder = micro.run("dpo", tmp_path / "dpo", **data, **general_files(hub, base))
    assert json.loads((folder / "finished.json").read_text())["test_rows"] == 10


def test_local_files_in_gsm8k_columns_and_math_verify(
    base: Path, hub: Callable[[str, list[dict[str, Any]]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("math_verify")
    scored, score = [], grpo.score

    def spy(stage: Any, rows: list[Any], verifier: Verifier, *rest: Any, **named: Any) -> Any:
        assert verifier.right("It is \\boxed{4,004}", "4004")
        scored.append([row["question"] for row in rows])
        return score(stage, rows, verifier, *rest, **named)

    monkeypatch.setattr(grpo, "score", spy)
    data = {
        "dataset": hub("train", GSM8K[:24]),
        "test_dataset": hub("test", GSM8K[24:32]),
        "ood_problems": hub("ood", GSM8K[32:]),
        "verifier": "math_verify",
    }
    folder = micro.run("grpo", tmp_path / "grpo", **data, **general_files(hub, base))
    questions = [row["question"] for row in GSM8K]
    assert scored == [questions[24:32], questions[32:], questions[24:32]]  # along the run, out of it, and many
    assert json.loads((folder / "finished.json").read_text())["train_rows"] == 24
    assert set(measured(folder, "behaviour.jsonl")[-1]) >= KEYS["grpo"]
    assert not (folder / "corpus").exists()


def test_generated_problems_are_not_those_of_the_base(chain: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, args = grpo.make_parser().parse(
        micro.arguments("grpo", chain["grpo"], **start_of(chain, "grpo"), test_problems=64)
    )
    stage = type("Stage", (), {"settings": settings, "args": args})()
    train, test, longer = grpo.problem_sets(stage)
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    from text.arithmetic import arithmetic_texts

    seen = {TEXT.fullmatch(text)[1] for text in arithmetic_texts(200_000)}  # type: ignore[index]
    assert not seen & {row["question"] for row in [*test, *longer]}
    assert all(row["question"].count("+") + row["question"].count("-") == 3 for row in longer)
    assert all(read_answer(f"Answer: {problem['answer']}") is not None for problem in to_problems(longer))


@pytest.mark.parametrize(
    ("recipe", "yaml", "given", "message"),
    [
        ("sft", "lora_rnak: 4", [], "unknown key lora_rnak (did you mean lora_rank?)"),
        ("dpo", "samples_temprature: 1", [], "unknown key samples_temprature (did you mean samples_temperature?)"),
        ("grpo", "many_sample: 4", [], "unknown key many_sample (did you mean many_samples?)"),
        ("grpo", "seed: 1", ["--num_generation", "4"], "--num_generation (did you mean num_generations?)"),
        ("sft", "seed: 1", ["--max_lenght", "4"], "--max_lenght (did you mean max_length?)"),
        ("dpo", "seed: 1", ["--bta", "4"], "--bta (did you mean beta?)"),
        ("sft", "verifier: integer", [], "unknown key verifier"),
        ("grpo", "verifier: guess", [], "verifier='guess' is not one of"),
    ],
)
def test_unknown_settings_are_refused(
    recipe: str, yaml: str, given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(f"output_dir: {tmp_path}/run\n{yaml}\n")
    with pytest.raises(SystemExit) as refused:
        micro.MODULES[recipe].make_parser().parse(["--config", str(tmp_path / "a.yaml"), *given])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_yaml_sets_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("output_dir: x\nlearning_rate: 5e-4\nuse_cpu: true\nbf16: false\ntest_rows: 5\n")
    settings, args = micro.MODULES["dpo"].make_parser().parse(["--config", str(tmp_path / "a.yaml"), "--beta", "0.3"])
    assert (settings.test_rows, args.learning_rate, args.beta, args.output_dir) == (5, 5e-4, 0.3, "x")


def test_a_stage_without_weights_is_refused_with_a_remedy(chain: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--base .*--model"):
        micro.run("sft", tmp_path / "a")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(SystemExit, match=r"--base .*no checkpoint.*pretrain\.py to its end"):
        micro.run("sft", tmp_path / "b", base=tmp_path / "unfinished")
    (tmp_path / "unfinished" / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"--model .*unfinished.*to its end"):
        micro.run("dpo", tmp_path / "c", base=chain["base"], model=tmp_path / "unfinished")


@pytest.mark.parametrize("recipe", ["dpo", "grpo"])
def test_a_reference_model_is_of_the_revision_that_is_trained(recipe: str, tmp_path: Path) -> None:
    """TRL loads it by the name of the policy, with these options; nothing is loaded here."""
    given = micro.arguments(recipe, tmp_path / recipe, model="owner/name", model_revision="v1")
    settings, args = (
        micro.MODULES[recipe].make_parser().parse([*given, "--model_init_kwargs", '{"attn_implementation": "eager"}'])
    )
    stage = posttrain.Stage(settings, args)
    assert stage.args.model_init_kwargs == {"attn_implementation": "eager", "revision": "v1"}
    again = (
        micro.MODULES[recipe].make_parser().parse([*given, "--model_init_kwargs", '{"attn_implementation": "eager"}'])
    )
    posttrain.Stage(*again)  # started again, its settings are those that it noted


def test_the_standard_library_has_rows_for_every_part() -> None:
    """What the recipes cut where no data set is given."""
    from text.data import describe_rows, write_rows

    parts = corpus.offline_corpus(arithmetic_share=0.0)
    counts = {part: len(write_rows(parts.texts(part))) for part in ("sft", "preference", "id_test")}
    assert all(count >= 100 for count in counts.values()), counts
    # Of turtle.py alone, where a distribution packages the rest apart.
    assert len(describe_rows(parts.texts("ood_test"))) >= 90
