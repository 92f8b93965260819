"""The analysis recipe on a run of seconds: what it leaves, and its numbers against hand-worked ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from analyses.numbers import behaviour_numbers, turns
from analysis import AnalysisSettings, evenly_in_log, main
from micro import write_jsonl

from geomcallbacks import ProbeSet, read_records
from geomcallbacks.phases import find_phases


def names_that_come_back() -> str:
    """A document in which a few rare names come back far behind their first place."""
    common = ["alpha", "beta", "gamma", "delta", "return", "def", "self", "value", "import", "for", "while", "with"]
    syllables = ["ka", "ro", "mi", "tu", "zen", "lor", "vex", "pol", "dun", "gri"]
    names = ["".join(random.choices(syllables, k=4)) for _ in range(4)]
    between, behind = ([" ".join(random.choices(common, k=8)) for _ in range(count)] for count in (8, 4))
    lines = [*(f"import {name} as value" for name in names), *between, *(f"for value in {name}" for name in names)]
    return "\n".join([*lines, *behind])


@pytest.fixture
def settings(tmp_path: Path) -> AnalysisSettings:
    random.seed(0)
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": names_that_come_back()} for _ in range(700)])
    values = dict(dataset=str(texts), vocab_size=300, hidden_size=16, layers=2, heads=2, updates=30, batch_size=4)
    values |= dict(seq_length=192, warmup=4, threads=1, probe_rows=32, probe_length=32, positions="4", alpha_first=2)
    values |= dict(alpha_last=12, accelerator="cpu", wandb="disabled", cloze_rows=8, memorisation_rows=100)
    values |= dict(per_decade=3, every=10, frequency_bands=3)
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(values))
    config = str(tmp_path / "pretrain.yaml")
    return AnalysisSettings(str(tmp_path / "out"), pretrain_config=config, directions=[1, 4], checkpoints=2)


def test_an_analysis_leaves_tables_numbers_and_figure_and_goes_on(
    settings: AnalysisSettings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(settings)
    folder = Path(settings.output_dir)
    numbers = json.loads((folder / "analysis.json").read_text())
    live = read_records(folder / "pretrain" / "geometry.jsonl")
    assert numbers["traced_off"] <= 1e-6
    assert numbers["turning_points"][-1] == {key: live[-1][key] for key in ("step", "rankme", "alpha_req")}
    assert (len(numbers["layers"]), len(numbers["bands"])) == (3, 3)
    assert list(numbers["probes"]) == ["probe", "quarter", "half_length", "other_text"]
    assert [record["step"] for record in numbers["intervention"]] == [1, 30]
    probe = ProbeSet.load(folder / "pretrain" / "probe.safetensors")
    sizes = {record["probe"]: record["n"] for record in read_records(folder / "geometry-trace.jsonl")}
    assert sizes == {"probe": 4 * len(probe), "quarter": len(probe), "half_length": 4 * len(probe), "other_text": 128}
    table = (folder / "analysis.md").read_text()
    for part in ("## Phases", "| half_length |", "`cloze_far/accuracy`", "remove top 4", "## Loss by token frequency"):
        assert part in table
    assert min(matplotlib.image.imread(folder / "analysis.png").shape[:2]) > 600

    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")}
    monkeypatch.delattr("pretrain.main")
    capfd.readouterr()
    main(settings)  # nothing is trained or measured again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")} == stamps
    assert json.loads((folder / "analysis.json").read_text()) == numbers
    assert "analysis.png" in capfd.readouterr().out


def test_behaviour_is_held_against_geometry_phase_by_phase() -> None:
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    rankme = [30, 20, 10, 5, 8, 12, 18, 24, 30, 20, 12, 9, 7]
    own = [{"step": s, "rankme": float(r), "alpha_req": 50.0 - r} for s, r in zip(steps, rankme, strict=True)]
    did = [{"step": s, "x/accuracy": 0.25 + 0.05 * k} for k, s in enumerate(steps)]
    phases = find_phases(steps, rankme)
    found = behaviour_numbers("x/accuracy", own, did, phases)
    assert found["highest"] == {"step": 2048, "value": pytest.approx(0.85)}
    assert found["half_of_gain_at"] == 32  # 0.55 is half way, and stands there
    # Accuracy only rises: its rank correlation is +1 where RankMe rises, -1 where it falls.
    signs = {"warm-up": -1, "entropy-seeking": 1, "compression-seeking": -1}
    assert [phase.name for phase in phases] == list(signs)
    for name, sign in signs.items():
        assert found["rank_correlation"][name] == {"rankme": pytest.approx(sign), "alpha_req": pytest.approx(-sign)}
    assert turns(own)[1] == {"step": 4, "rankme": 5.0, "alpha_req": 45.0}
    assert [turn["step"] for turn in turns(own)] == [0, 4, 128, 2048]


def test_checkpoints_are_evenly_spaced_in_log_updates() -> None:
    assert evenly_in_log([0, 1, 10, 100, 1000], 3) == [10, 100, 1000]
    assert evenly_in_log([0, 1, 10, 100, 1000], 1) == [1000]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pretrain_config": "nowhere.yaml"}, r"pretrain_config='nowhere\.yaml': no such file"),
        ({"directions": [0, 1]}, r"directions=\[0, 1\]"),
        ({"checkpoints": 0}, "checkpoints=0"),
    ],
)
def test_wrong_settings_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalysisSettings(**{"pretrain_config": __file__} | changed)
