"""Behaviour on the command line of `geomcallbacks trace`: choices, intervention and memorisation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from transformers import AutoModelForCausalLM

from geomcallbacks import ProbeSet, read_records
from geomcallbacks.behaviour import ChoiceAccuracy, Choices, Completions, Memorisation, NgramScores
from geomcallbacks.behaviour.measures.intervention import KINDS, SpectralIntervention
from geomcallbacks.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A Trainer's folder with two checkpoints."""
    for step in (10, 20):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        tiny.model(seed=step).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    return tmp_path / "run"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    words = [f"w{i}" for i in range(100)]
    rows = [
        {"support": " ".join(words[i : i + 5]), "question": words[i], "correct_answer": words[i + 1]}
        | {f"distractor{k}": words[(i + 7 * k) % 100] for k in (1, 2, 3)}
        for i in range(40)
    ]
    file = tmp_path / "sciq.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def traced(run: Path, tmp_path: Path, *arguments: object) -> int:
    probe = tmp_path / "probe.safetensors"
    tiny.probe().save(probe)
    options = ["--probe", probe, "--alpha-window", *tiny.WINDOW, "--out", tmp_path / "geometry.jsonl"]
    return main(["trace", str(run), *map(str, (*options, *arguments))])


def test_choices_intervention_and_memorisation_are_those_of_the_measures(
    run: Path, questions: Path, tmp_path: Path
) -> None:
    rows = Completions([[3 + i, 4] for i in range(30)], [[5 + i, 6] for i in range(30)])
    scores = NgramScores([[0.1 + 0.02 * i, 0.5] for i in range(30)], [[1, 2]] * 30, "by hand")
    memorised = Memorisation(rows, scores)
    memorised.save(tmp_path / "memorisation.safetensors")
    saved = Choices.from_sciq(map(json.loads, questions.read_text().splitlines()), tiny.tokenizer())
    saved.save(tmp_path / "saved.json")
    options = ["--choices", f"sciq={questions}", f"saved={tmp_path / 'saved.json'}", "--intervention", "1,4"]
    assert traced(run, tmp_path, *options, "--memorisation", tmp_path / "memorisation.safetensors") == 0
    assert len(read_records(tmp_path / "geometry.jsonl")) == 2
    found = read_records(tmp_path / "behaviour.jsonl")
    assert [record["step"] for record in found] == [10, 20]
    for record in found:
        model = AutoModelForCausalLM.from_pretrained(run / f"checkpoint-{record['step']}").eval()
        expected = {f"memorisation/{key}": value for key, value in memorised(model).items()}
        expected |= {f"sciq/{key}": value for key, value in ChoiceAccuracy(saved)(model).items()}
        directions = SpectralIntervention(ProbeSet.load(tmp_path / "probe.safetensors"), saved, ks=(1, 4))
        expected |= {f"intervention_saved/{key}": value for key, value in directions(model).items()}
        assert {key: record[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        assert {f"intervention_sciq/{kind}_{k}" for kind in KINDS for k in (1, 4)} <= record.keys()


def test_one_set_of_choices_needs_no_label(run: Path, questions: Path, tmp_path: Path) -> None:
    assert traced(run, tmp_path, "--choices", questions, "--intervention", "2") == 0
    assert {"choices/accuracy", "intervention/full"} <= read_records(tmp_path / "behaviour.jsonl")[0].keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--intervention", "1,5"], "give --choices too"),
        (["--choices", "x.jsonl", "--intervention", "one"], "--intervention one: give whole numbers"),
        (["--choices", "nowhere.json"], "--choices nowhere.json: there is no such file"),
        (["--memorisation", "nowhere.safetensors"], "--memorisation nowhere.safetensors: there is no such file"),
        (["--choices", "{bad}"], "row 0 has no text in support"),
        (["--choices", "{probe}.json"], "holds no saved choices"),
    ],
)
def test_what_cannot_be_read_is_said(
    run: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "w1"}\n')
    (tmp_path / "probe.json").write_text("no choices, nor JSON: is no")
    options = [option.format(bad=bad, probe=tmp_path / "probe") for option in options]
    assert traced(run, tmp_path, *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "behaviour.jsonl").exists()


def test_more_directions_than_there_are_end_the_command(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traced(run, tmp_path, "--choices", questions, "--intervention", "17") == 2
    assert "16" in capsys.readouterr().err
