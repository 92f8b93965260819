"""SFT, DPO and GRPO on a model of some thousand parameters: what a stage leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import grpo
import micro
import pytest
import torch
from text import corpus
from text.arithmetic import arithmetic_texts
from text.data import describe_rows, to_pairs, write_rows
from training.settings import StageSettings
from training.texts import Texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from geomcallbacks import ProbeSet, read_records
from geomcallbacks.behaviour import CompletionLoss, Completions

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


@pytest.mark.parametrize("recipe", list(PROBES))
def test_geometry_and_behaviour_are_measured_at_the_scheduled_updates(chain: dict[str, Path], recipe: str) -> None:
    records = read_records(chain[recipe] / "geometry.jsonl")
    assert [(r["step"], r["probe"]) for r in records] == [(step, probe) for step in STEPS for probe in PROBES[recipe]]
    assert all(math.isfinite(r["rankme"]) and math.isfinite(r["alpha_req"]) for r in records)
    read = {(r["d"], r["positions"], tuple(r["alpha_window"]), r["precision"]) for r in records}
    assert read == {(16, 4, (2, 12), "fp32")}
    for probe in PROBES[recipe]:
        of_probe = [r for r in records if r["probe"] == probe]
        assert len({r["fingerprint"] for r in of_probe}) == 1
        assert len({r["rankme"] for r in of_probe}) == len(STEPS)  # the weights moved between them
    scores = read_records(chain[recipe] / "behaviour.jsonl")
    assert [record["step"] for record in scores] == STEPS
    for record in scores:
        assert set(record) - {"kind", "step", "seconds"} == KEYS[recipe]
        assert all(math.isfinite(record[key]) for key in KEYS[recipe])
    assert len({record["general/loss"] for record in scores}) == len(STEPS)


@pytest.mark.parametrize("recipe", list(PROBES))
def test_weights_are_saved_and_are_not_those_of_the_start(chain: dict[str, Path], recipe: str) -> None:
    start, end = micro.start_weights(chain, recipe), micro.weights(chain[recipe] / "model")
    assert start.keys() == end.keys()
    assert not any(torch.equal(start[name], end[name]) for name in start if name.endswith("weight"))
    tokenizer = AutoTokenizer.from_pretrained(chain[recipe] / "model")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(chain["base"] / "tokenizer").get_vocab()


def test_stages_hang_together(chain: dict[str, Path]) -> None:
    """Each starts from the weights with which the one before ended, and all are measured on the base's probe."""
    before = read_records(chain["base"] / "geometry.jsonl")[-1]
    for stage in PROBES:
        first, *_, last = [r for r in read_records(chain[stage] / "geometry.jsonl") if r["probe"] == "general"]
        assert first["fingerprint"] == ProbeSet.load(chain["base"] / "probe.safetensors").fingerprint
        for metric in ("rankme", "alpha_req", "trace"):
            assert first[metric] == pytest.approx(before[metric], rel=1e-9), stage
        before = last


def test_rows_come_from_the_parts_that_were_split_for_them(chain: dict[str, Path]) -> None:
    """The base was pretrained on none of the text that later stages train or are tested on."""
    parts = corpus.Corpus.load(chain["base"] / "corpus")
    write = {part: to_pairs(write_rows(parts.texts(part))) for part in ("sft", "preference", "id_test")}
    finished = json.loads((chain["sft"] / "finished.json").read_text())
    assert (finished["train_rows"], finished["device"], finished["updates"]) == (len(write["sft"]), "CPU", 4)
    for file, part in (("pairs_train.jsonl", "preference"), ("pairs_test.jsonl", "id_test")):
        prompts = {row["prompt"] for row in micro.lines_of(chain["dpo"] / file)}
        assert prompts
        assert prompts <= {row["prompt"] for row in write[part]}
    tests = {"id": write["id_test"], "ood": to_pairs(describe_rows(parts.texts("ood_test")))}
    tokenizer = AutoTokenizer.from_pretrained(chain["base"] / "tokenizer")
    for name, rows in tests.items():
        pairs = [[row[key] for row in rows[:12]] for key in ("prompt", "completion")]
        expected = CompletionLoss(Completions.from_texts(*pairs, tokenizer, max_length=112)).fingerprint
        for stage in PROBES:
            measures = micro.lines_of(chain[stage] / "behaviour.jsonl")[0]["measures"]
            assert measures[name]["fingerprint"] == expected != measures["general"]["fingerprint"]


def test_no_row_of_the_task_probe_ends_in_eos(chain: dict[str, Path], tmp_path: Path) -> None:
    """All of them would share its state."""
    tokenizer = AutoTokenizer.from_pretrained(chain["base"] / "tokenizer")
    eos = tokenizer.eos_token_id
    rows = Completions([[5, 6, 7]] * 2, [[8, 9, eos], [8, 9, 3]])
    probe = Texts(StageSettings(positions="2"), tmp_path, tokenizer).completion_probe(rows)
    whole = [row[:length] for row, length in zip(probe.input_ids_nt.tolist(), probe.lengths_n, strict=True)]
    assert whole == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 3]]


def test_sft_learns_the_pairs_and_the_general_loss_is_that_of_the_probe(chain: dict[str, Path]) -> None:
    """Against the plain loss of Transformers on the same rows."""
    first, *_, last = read_records(chain["sft"] / "behaviour.jsonl")
    assert last["id/loss"] < first["id/loss"] - 0.3
    probe = ProbeSet.load(chain["base"] / "probe.safetensors")
    model = AutoModelForCausalLM.from_pretrained(chain["sft"] / "model").eval()
    with torch.no_grad():
        loss = model(input_ids=probe.input_ids_nt, labels=probe.input_ids_nt).loss.item()
    assert last["general/loss"] == pytest.approx(loss, rel=1e-5)


def test_dpo_prefers_the_library_to_the_samples(chain: dict[str, Path]) -> None:
    first, *_, last = read_records(chain["dpo"] / "behaviour.jsonl")
    # Against its own start weights a model has no preference yet: that is what the reference must be.
    assert (first["preference/reward_accuracy"], first["preference/reward_margin"]) == (0.5, 0.0)
    assert last["preference/reward_margin"] > 1
    assert all(pair["chosen"] != pair["rejected"] for pair in micro.lines_of(chain["dpo"] / "pairs_train.jsonl"))


def test_grpo_judges_many_rollouts_before_and_after(chain: dict[str, Path]) -> None:
    found = json.loads((chain["grpo"] / "rollouts.json").read_text())
    assert list(found) == ["start", "end"]
    assert set(found["start"]) == set(found["end"]) == {*ROLLOUTS, "pass@2", "pass@4", "self_bleu"}
    for scores in found.values():
        assert scores["pass@1"] == scores["reward"] <= scores["pass@2"] <= scores["pass@4"]
    assert found["start"] != found["end"]


def test_grpo_crosses_weights_with_rollouts(chain: dict[str, Path]) -> None:
    records = {(r["step"], r["probe"]): r for r in read_records(chain["grpo"] / "crossed.jsonl")}
    assert list(records) == [(step, probe) for step in (0, 4) for probe in ("start_rollouts", "end_rollouts")]
    prints = {key: record["fingerprint"] for key, record in records.items()}
    assert prints[0, "start_rollouts"] == prints[4, "start_rollouts"] != prints[0, "end_rollouts"]
    assert prints[0, "end_rollouts"] == prints[4, "end_rollouts"]
    assert len({r["rankme"] for r in records.values()}) == 4
    # The rollouts of the start are those that were measured along the run.
    along = [r for r in read_records(chain["grpo"] / "geometry.jsonl") if r["probe"] == "rollouts"]
    assert prints[0, "start_rollouts"] == along[0]["fingerprint"]
    for step, live in ((0, along[0]), (4, along[-1])):
        assert records[step, "start_rollouts"]["rankme"] == pytest.approx(live["rankme"], rel=1e-6)


def test_generated_problems_are_not_those_of_the_base(tmp_path: Path) -> None:
    settings, _ = grpo.make_parser().parse(micro.arguments("grpo", tmp_path, problems=4000, test_problems=400))
    train, test, longer = ({row["question"] for row in rows} for rows in grpo.problem_sets(settings, None))
    seen = {text.split("\n")[0].removeprefix("Question: ") for text in arithmetic_texts(200_000)}
    assert seen & train
    assert not (seen | train) & (test | longer)
    assert all(question.count("+") + question.count("-") == 3 for question in longer)
