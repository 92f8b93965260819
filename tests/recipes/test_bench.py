"""The bench counts, draws and writes what it should; each section runs at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import micro
import pytest
import torch
from bench import forward, growth, overhead, positions, spectrum
from bench.section import Section, markdown, save, shown
from bench.timing import Cost, exponent, in_turn, rows_of
from transformers import GPTNeoXConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limits", "rounds"),
    [({"rounds": 3}, 3), ({"limit": 0.0}, 1)],  # a first round that took too long counts
)
def test_rounds_take_turns_and_the_first_warms_up(limits: dict[str, float], rounds: int) -> None:
    order: list[str] = []
    costs = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, CPU, **limits)
    assert order == list("ab") * (1 + rounds if "rounds" in limits else 1)
    assert [len(cost.seconds) for cost in costs.values()] == [rounds, rounds]


def test_peak_memory_of_a_call() -> None:
    """64 MiB that are freed before the call ends; the next call, which takes nothing, does not see them."""
    costs = in_turn({"takes": lambda: torch.ones(2**24).sum(), "nothing": lambda: None}, CPU, rounds=1)
    if costs["takes"].peak_mib is None:
        pytest.skip("peaks are known on Linux and CUDA alone")
    assert 60 < costs["takes"].peak_mib < 80
    assert costs["nothing"].peak_mib < 4


def test_medians_ratios_and_exponents() -> None:
    rows = rows_of({"other": Cost([9.0, 1.0, 8.0], 5.0), "ours": Cost([2.0, 4.0, 100.0], None)}, "ours")
    assert [(row["seconds"], row["times ours"], row["rounds"]) for row in rows] == [(8.0, 2.0, 3), (4.0, 1.0, 3)]
    assert exponent([1, 2, 4], [3.0, 3.0 * 2**1.5, 3.0 * 4**1.5]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (0.12345, "0.123"), (1234.5, "1,234"), (1.2e-9, "1.2e-09"), (10000, "10,000"), ("x", "x")],
)
def test_cells(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_section_measured_again_replaces_itself_alone(tmp_path: Path) -> None:
    rows = [{"a": 1, "b|c": 0.5}, {"a": 22, "d": "long word"}]
    section = Section("Title", "Note.", rows, ["Remark."], {"date": "today"})
    lines = ["| a  | b\\|c | d         |", "| -- | ---- | --------- |", "| 1  | 0.5  |           |"]
    table = "\n".join([*lines, "| 22 |      | long word |"])
    assert markdown(section) == f"## Title\n\nNote.\n\n{table}\n\nRemark.\n\n- date: today"
    file, other = tmp_path / "new" / "bench_cpu.json", Section("Other", "Note.", [{"a": 2}])
    save(file, {"first": Section("Old", "Note.", [{"a": 0}]), "second": other})
    save(file, {"first": section})
    assert json.loads(file.read_text()) == {"first": vars(section), "second": vars(other)}
    page = "\n\n".join(["# What measuring costs", markdown(section), markdown(other)])
    assert file.with_suffix(".md").read_text() == f"{page}\n"


@pytest.mark.parametrize("shape", [(300, 120), (110, 300)], ids=["n>d", "n<d"])
def test_spectra_agree(shape: tuple[int, int]) -> None:
    pytest.importorskip("sklearn")
    rows = {row["method"]: row for row in spectrum.spectrum(CPU, [shape], limit=0.0).rows}
    assert set(rows) == set(spectrum.METHODS)
    for name, row in rows.items():
        least = 1e-4 if name in ("svdvals float32", "scikit-learn full PCA") else 1e-11
        assert row["RankMe error"] < least
        assert row["alpha error"] < least


def neox() -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )


def test_forward_sides_read_the_same_states() -> None:
    case = forward.Case("tiny", neox(), rows=5, length=16, batch=2)
    section = forward.forward(CPU, [case], limit=0.0)
    assert [row["probe"] for row in section.rows] == ["5 x 16"] * 3 + ["5 x 4-16"] * 3
    model = forward.AutoModelForCausalLM.from_config(case.config).eval()
    rows = forward.probe(case, [4, 16, 9, 7, 12])
    naive = torch.cat(forward.naive(model, rows, 2, CPU))
    ours = torch.cat(forward.ours(forward.Reader(model), rows, 2))
    torch.testing.assert_close(ours, naive[torch.cat([batch.rows_b for batch in rows.batches(2)])])


def test_operations_counted_by_hand() -> None:
    model = forward.AutoModelForCausalLM.from_config(neox())
    rows = forward.probe(forward.Case("tiny", neox(), 2, 8, 2), [8, 4])
    block = 16 * 48 + 48 + 16 * 16 + 16 + 16 * 32 + 32 + 32 * 16 + 16 + 4 * 16  # attention, MLP, two norms
    assert forward.flops(model, rows, layers=2) == 2 * 2 * block * 12 + 2 * 2 * 16 * (64 + 16)


def test_overhead_counts_measurements_and_leaves_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "ROWS", 4)
    monkeypatch.setattr(overhead, "CHUNK", 10)
    section = overhead.overhead(CPU, updates=50)
    without, default, dense = section.rows
    assert without["measurements"] == without["measuring (s)"] == 0
    assert default["measurements"] == len(overhead.Schedule().steps(50))
    assert dense["measurements"] == len([0, 10])  # every ten and the last of a fifth
    assert section.remarks == ["Weights with and without: bit-identical."]


def test_growth_names_every_size() -> None:
    section = growth.growth(CPU, growth.Point(n=64, d=32, layers=2, tokens=32), rounds=1)
    names = ["n", "d", "layers", "tokens", "positions=k, equal rows", "positions=k, equal n"]
    assert [row["size"] for row in section.rows] == names
    assert section.rows[0]["values"] == "32, 64, 128"


def test_positions_on_a_run_of_the_recipe(tmp_path: Path) -> None:
    section = positions.positions(CPU, micro.make_base(tmp_path), n=32, draws=2)
    assert [(row["positions"], row["rows"]) for row in section.rows] == [("last", 32), (2, 16), (4, 8), (8, 4), (16, 2)]
    assert section.rows[0]["RankMe bias (%)"] == 0.0
    assert all(row["RankMe"] > 1 and row["alpha"] is not None for row in section.rows)
