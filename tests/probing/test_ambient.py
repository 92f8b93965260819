"""Nothing of a script's surroundings reaches the rows: not its default device and dtype, and ~ is the user's home."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from stairway import ROOT

from geomcallbacks import ProbeSet
from geomcallbacks.behaviour import Choices, Completions, continuations
from geomcallbacks.behaviour.rows.counts import load_counts, save_counts, token_counts
from geomcallbacks.trace import ProbeSource

FACTORIES = {
    "tensor", "as_tensor", "zeros", "ones", "full", "empty", "arange", "randperm", "rand", "randn", "randint", "eye",
    "linspace", "logspace",
}  # fmt: skip
TEXTS = tiny.texts(60)


def without_device(file: Path) -> list[str]:
    """The calls in a file that make a tensor, or a generator, on whatever device is the default."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    torchs = [
        call for call in calls if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "torch"
    ]
    return [
        f"{file.name}:{call.lineno} {ast.unparse(call)}"
        for call in torchs
        if (call.func.attr in FACTORIES and "device" not in {word.arg for word in call.keywords})
        or (call.func.attr == "Generator" and not call.args and not call.keywords)
    ]


def test_every_tensor_is_made_on_a_device_that_is_named() -> None:
    files = sorted((ROOT / "geomcallbacks").rglob("*.py"))
    assert len(files) > 100
    assert [call for file in files for call in without_device(file)] == []


def everything(folder: Path) -> list[Any]:
    """What is made of rows by every public call, as plain numbers."""
    folder.mkdir()
    texts, own = TEXTS, tiny.tokenizer()
    settings: dict[str, Any] = {"size": 20, "max_length": 20, "min_length": 8}
    ids = [[5, 6, 7], [8, 9]]
    (folder / "t.txt").write_text("\n".join(texts))
    probes = [
        ProbeSet.from_token_ids(ids),
        ProbeSet.from_texts(texts, own, **settings),
        ProbeSet.from_texts(iter(texts), own, **settings),
        ProbeSet.from_dataset(Dataset.from_dict({"text": texts}), own, **settings),
        ProbeSet.split(texts, own, **settings)[1],
        ProbeSource(str(folder / "t.txt"), rows=5, length=20, min_length=8).build(own),
    ]
    probes[1].save(folder / "p.safetensors")
    probes.append(ProbeSet.load(folder / "p.safetensors"))
    batches = [batch for probe in probes for batch in probe.batches(3)]
    completions = Completions.from_texts(["w1", "w2 w3"], ["w4", "w5"], own, max_length=8)
    drawn = continuations([list(range(5, 40))], prompt_length=3, answer_length=2, rows=3)
    choices = Choices([[1]], [[[2], [3]]], [0])
    choices.save(folder / "c.json")
    counts = token_counts([probes[0].input_ids_nt], 20)
    save_counts(counts, folder / "counts.txt")
    found: list[Any] = [repr(probe) for probe in probes]
    found += [[batch.mask_bt.tolist(), batch.input_ids_bt.tolist(), batch.padded] for batch in batches]
    found += [rows.fingerprint for rows in (completions, drawn, Choices.load(folder / "c.json"))]
    return [*found, counts.tolist(), load_counts(folder / "counts.txt").tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_default_device_and_dtype_reach_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    """ "meta" stands for an accelerator: what lands there has no values."""
    wanted, before = everything(tmp_path / "plain"), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert everything(tmp_path / "ambient") == wanted
    finally:
        torch.set_default_dtype(before)


def test_a_mask_given_as_a_list_is_read_where_the_rows_are() -> None:
    ids_nt = torch.tensor([[5, 6, 0], [7, 8, 9]])
    with torch.device("meta"):
        probe = ProbeSet.from_token_ids(ids_nt, [[1, 1, 0], [1, 1, 1]])  # type: ignore[arg-type]
    assert probe.fingerprint == ProbeSet.from_token_ids([[5, 6], [7, 8, 9]]).fingerprint


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, and another folder to work in."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


CHOICES, COUNTS = Choices([[1]], [[[2], [3]]], [0]), torch.tensor([1, 2])
SAVED: dict[str, tuple[Callable[[str], None], Callable[[str], Any]]] = {
    "p.safetensors": (lambda path: tiny.probe().save(path), lambda path: ProbeSet.load(path).fingerprint),
    "c.json": (CHOICES.save, lambda path: Choices.load(path).fingerprint),
    "counts.txt": (lambda path: save_counts(COUNTS, path), lambda path: load_counts(path).tolist()),
}


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_in_the_home_lies_there(home: Path, name: str) -> None:
    save, load = SAVED[name]
    save(f"~/{name}")
    assert [file.name for file in home.iterdir()] == [name]
    assert load(f"~/{name}") == load(str(home / name))
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.parquet", "t.safetensors", "texts"])
def test_a_probe_of_a_file_in_the_home(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home.parent / "cache")
    table = Dataset.from_dict({"text": TEXTS})
    file = home / name
    if name == "texts":
        file.mkdir()
        table.to_json(file / "t.jsonl")
    elif name == "t.txt":
        file.write_text("\n".join(TEXTS))
    elif name == "t.safetensors":
        tiny.probe(10).save(file)
    else:
        getattr(table, f"to_{file.suffix[1:].replace('jsonl', 'json')}")(file)
    build = lambda source: ProbeSource(source, rows=10, length=40).build(tiny.tokenizer())
    assert build(f"~/{name}").fingerprint == build(str(file)).fingerprint
