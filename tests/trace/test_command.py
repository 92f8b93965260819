"""The command line of `geomcallbacks trace`: what it makes of its arguments, and the behaviour that it measures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from run_folders import live
from transformers import AutoModelForCausalLM

from geomcallbacks import read_records
from geomcallbacks.behaviour import ChoiceAccuracy, Choices, Completions, Memorisation, NgramScores
from geomcallbacks.behaviour.measures.intervention import KINDS, SpectralIntervention
from geomcallbacks.cli import main
from geomcallbacks.trace import ProbeSource
from geomcallbacks.trace.command import add_arguments, probes_of, settings_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints and their tokenizer."""
    folder = live(tmp_path_factory.mktemp("run"), (10, 20))
    for step in (10, 20):
        tiny.tokenizer().save_pretrained(folder / f"checkpoint-{step}")
    return folder


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


def traced(run: Path, folder: Path, *arguments: object) -> int:
    return main(["trace", *map(str, (run, "--out", folder / "geometry.jsonl", *arguments))])


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(map(str, arguments)))


def test_the_command_line_gives_probes_and_settings(tmp_path: Path) -> None:
    def parsed(*arguments: str) -> tuple[Any, dict[str, Any]]:
        given = parse("model", *arguments)
        return probes_of(given), settings_of(given)

    assert parsed() == (None, {})
    # Li et al. 2025: 15,000 FineWeb texts of at most 512 tokens, the last position, ranks 12 to 100.
    fineweb = ProbeSource("HuggingFaceFW/fineweb", 15_000, 512, config="sample-10BT")
    assert parsed("--preset", "paper") == ({"probe": fineweb}, {"alpha_window": [12, 100], "positions": "last"})
    probes, _ = parsed("--preset", "paper", "--probe", "a=x.jsonl", "b=y.txt", "--probe-rows", "9")
    assert probes == {"a": ProbeSource("x.jsonl", 9, 512), "b": ProbeSource("y.txt", 9, 512)}
    probes, settings = parsed("--probe", "x.jsonl", "--layers", "0", "-1", "h.2", "--positions", "4", "--intervals")
    assert probes == {"probe": ProbeSource("x.jsonl")}
    assert settings == {"layers": [0, -1, "h.2"], "positions": 4, "intervals": True}
    assert parsed("--layers", "0")[1] == {"layers": 0}


def test_the_probe_of_a_run_is_not_replaced_by_the_way(tmp_path: Path) -> None:
    live(tmp_path, [0])
    with pytest.raises(ValueError, match=r"--probe-rows, --probe-column: .* is read with the probe of its run"):
        probes_of(parse(tmp_path, "--probe-rows", 9, "--probe-column", "body"))
    assert probes_of(parse(tmp_path, "--probe-rows", 9, "--probe", "offline")) == {"probe": ProbeSource(rows=9)}


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
        directions = SpectralIntervention(tiny.probe(), saved, ks=(1, 4))
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
        (["--choices", "{tmp}/bad.jsonl"], "row 0 has no text in support"),
        (["--choices", "{tmp}/torn.jsonl"], "torn.jsonl: line 2 is no JSON"),
        (["--choices", "{tmp}/torn.json"], "holds no saved choices"),
        (["--choices", "{tmp}/sciq.jsonl", "--intervention", "17"], "have d = 16 directions; lower ks"),
        (["--device", "foo"], "--device foo cannot be used here"),
        (["--layers", "7"], "layers=7 is not in GPTNeoX"),
    ],
)
def test_arguments_that_cannot_be_end_the_command(
    run: Path, questions: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "w1"}\n')
    for name in ("torn.jsonl", "torn.json"):
        (tmp_path / name).write_text("\n{torn\n")
    assert traced(run, tmp_path, *(option.format(tmp=tmp_path) for option in options)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "behaviour.jsonl").exists()
