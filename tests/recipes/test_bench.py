"""The bench counts, draws and writes what it should; each section runs at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import micro
import pytest
import torch
from bench import forward, growth, overhead, positions, spectrum
from bench.table import Section, aligned, markdown, save, shown
from bench.timing import Cost, exponent, in_turn, rows_of
from transformers import GPTNeoXConfig

CPU = torch.device("cpu")


def test_rounds_take_turns_and_the_first_warms_up() -> None:
    order: list[str] = []
    costs = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, CPU, rounds=3)
    assert order == list("abababab")
    assert [len(cost.seconds) for cost in costs.values()] == [3, 3]


def test_a_first_round_that_took_too_long_counts() -> None:
    order: list[str] = []
    costs = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, CPU, limit=0.0)
    assert order == ["a", "b"]
    assert [len(cost.seconds) for cost in costs.values()] == [1, 1]


def test_peak_memory_of_a_call() -> None:
    """64 MiB that are freed before the call ends; the next call, which takes nothing, does not see them."""
    costs = in_turn({"takes": lambda: torch.ones(2**24).sum(), "nothing": lambda: None}, CPU, rounds=1)
    if costs["takes"].peak_mib is None:
        pytest.skip("peaks are told on Linux and CUDA alone")
    assert 60 < costs["takes"].peak_mib < 80
    assert costs["nothing"].peak_mib < 4


def test_medians_and_ratios() -> None:
    rows = rows_of({"other": Cost([9.0, 1.0, 8.0], 5.0), "ours": Cost([2.0, 4.0, 100.0], None)}, "ours")
    assert [row["seconds"] for row in rows] == [8.0, 4.0]
    assert [row["times ours"] for row in rows] == [2.0, 1.0]
    assert [row["rounds"] for row in rows] == [3, 3]


def test_exponent_of_a_power_law() -> None:
    assert exponent([1, 2, 4], [3.0, 3.0 * 2**1.5, 3.0 * 4**1.5]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (0.12345, "0.123"), (1234.5, "1,234"), (1.2e-9, "1.2e-09"), (10000, "10,000"), ("x", "x")],
)
def test_cells(value: object, text: str) -> None:
    assert shown(value) == text


SECTION = Section("Title", "Note.", [{"a": 1, "b": 0.5}, {"a": 22, "c": "long word"}], ["Remark."], {"date": "today"})


def test_table() -> None:
    table = "| a | b | c |\n| --- | --- | --- |\n| 1 | 0.5 |  |\n| 22 |  | long word |"
    assert markdown(SECTION) == f"## Title\n\nNote.\n\n{table}\n\nRemark.\n\n- date: today"
    assert aligned(table) == "a    b    c\n---  ---  ---------\n1    0.5\n22        long word\n"


def test_a_section_measured_again_replaces_itself_alone(tmp_path: Path) -> None:
    file, other = tmp_path / "new" / "bench_cpu.json", Section("Other", "Note.", [{"a": 2}])
    save(file, {"first": Section("Old", "Note.", [{"a": 0}]), "second": other})
    save(file, {"first": SECTION})
    assert json.loads(file.read_text()) == {"first": vars(SECTION), "second": vars(other)}
    text = file.with_suffix(".md").read_text()
    assert markdown(SECTION) in text
    assert markdown(other).strip() in text
    assert "Old" not in text


@pytest.mark.parametrize("shape", [(300, 120), (110, 300)], ids=["n>d", "n<d"])
def test_spectra_agree(shape: tuple[int, int]) -> None:
    pytest.importorskip("sklearn")
    rows = {row["method"]: row for row in spectrum.spectrum(CPU, [shape], limit=0.0).rows}
    assert set(rows) == set(spectrum.methods())
    for name, row in rows.items():
        rough = name in ("svdvals float32", "scikit-learn full PCA")
        assert row["RankMe error"] < (1e-4 if rough else 1e-11)
        assert row["alpha error"] < (1e-4 if rough else 1e-11)


def test_forward_sides_read_the_same_states() -> None:
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    case = forward.Case("tiny", config, rows=5, length=16, batch=2)
    section = forward.forward(CPU, [case], limit=0.0)
    assert [row["probe"] for row in section.rows] == ["5 x 16"] * 3 + ["5 x 4-16"] * 2
    model = forward.AutoModelForCausalLM.from_config(config).eval()
    rows = forward.probe(case, [4, 16, 9, 7, 12])
    naive = torch.cat(forward.naive(model, rows, 2, CPU))
    for one_width in (False, True):
        ours = torch.cat(forward.ours(forward.Reader(model), rows, 2, one_width))
        order = torch.cat([batch.rows_b for batch in rows.batches(2, one_width=one_width)])
        torch.testing.assert_close(ours, naive[order])


def test_operations_counted_by_hand() -> None:
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = forward.AutoModelForCausalLM.from_config(config)
    rows = forward.probe(forward.Case("tiny", config, 2, 8, 2), [8, 4])
    block = 16 * 48 + 48 + 16 * 16 + 16 + 16 * 32 + 32 + 32 * 16 + 16 + 4 * 16  # attention, MLP, two norms
    assert forward.flops(model, rows, layers=2) == 2 * 2 * block * 12 + 2 * 2 * 16 * (64 + 16)


def test_overhead_counts_measurements_and_leaves_weights_alone() -> None:
    section = overhead.overhead(CPU, updates=5 * overhead.CHUNK)
    without, default, dense = section.rows
    assert without["measurements"] == without["measuring (s)"] == 0
    assert default["measurements"] == len(overhead.Schedule().steps(5 * overhead.CHUNK))
    assert dense["measurements"] == len([0, 10, 20, 25])  # every ten and the last of a fifth
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
