"""The house: files that a person can read, imports that go one way, one stairway from hook to row."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from stairway import ROOT, imports, on_its_way_to_wandb

RECIPES = {"analysis", "contrast", "dpo", "grpo", "pretrain", "scale", "sft", "softmax_bottleneck"}


def test_no_file_is_longer_than_300_lines() -> None:
    files = [path for top in ("geomcallbacks", "recipes") for path in (ROOT / top).rglob("*.py")]
    long = {path.name: count for path in files if (count := len(path.read_text(encoding="utf-8").splitlines())) > 300}
    assert len(files) > 100
    assert not long


def room(module: str) -> str:
    """The folder of a module below the root, or the module itself where it lies at the root."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("top", ["geomcallbacks", "recipes"])
def test_imports_go_one_way(top: str) -> None:
    """Neither files nor rooms import each other in a circle."""
    files = imports(ROOT / top, "geomcallbacks" if top == "geomcallbacks" else "")
    files.pop(top, None)  # the package's own door imports what users import
    rooms: dict[str, set[str]] = {}
    for module, others in files.items():
        place = room(module) if top == "geomcallbacks" else module.split(".")[0]
        for other in others - {top}:
            there = room(other) if top == "geomcallbacks" else other.split(".")[0]
            rooms.setdefault(place, set()).update({there} - {place})
    for graph in ({name: others - {top} for name, others in files.items()}, rooms):
        assert len(graph) > 10
        TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_top_of_the_recipes_shows_what_can_be_run() -> None:
    assert {path.stem for path in (ROOT / "recipes").glob("*.py")} == RECIPES


def test_a_measurement_goes_down_one_stairway(tmp_path: Path) -> None:
    """What is asked on the way: between batches whether the process is to end, of each layer what it computes in."""
    files, climbs = on_its_way_to_wandb(tmp_path)
    assert files[0] == "geomcallbacks.adapters.hf"
    assert files[-1] == "geomcallbacks.adapters.integrations"
    assert len(files) <= 27
    asked = {"geomcallbacks.adapters.hf._is_ending", "geomcallbacks.reading.rounding.note"}
    assert {climb.partition(" -> ")[2] for climb in climbs} <= asked
