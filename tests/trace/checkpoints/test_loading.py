"""What a checkpoint holds when it is loaded; what is missing, foreign or code is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from geomcallbacks.trace import Reading
from geomcallbacks.trace.behaviour_source import BehaviourSource
from geomcallbacks.trace.checkpoints.loading import load_model

CPU = Reading("fp32", "cpu")


def save_lightning(file: Path, prefix: str = "model.") -> torch.nn.Module:
    model = tiny.model(seed=3)
    state = {prefix + key: value for key, value in model.state_dict().items()} | {"loss.scale": torch.ones(1)}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "global_step": 77, "epoch": 0}, file)
    model.config.save_pretrained(file.parent)
    return model


@pytest.mark.parametrize("prefix", ["model.", "", "model._orig_mod.", "net.lm."])
def test_lightning_checkpoints_are_read_under_any_prefix(tmp_path: Path, prefix: str) -> None:
    saved = save_lightning(tmp_path / "last.ckpt", prefix).state_dict()
    read = load_model(tmp_path / "last.ckpt", CPU)[0].state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[key], read[key]) for key in saved)
    assert next(load_model(tmp_path / "last.ckpt", Reading("bf16", "cpu"))[0].parameters()).dtype == torch.bfloat16


def test_a_lightning_checkpoint_without_a_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "step=3.ckpt"
    save_lightning(file)
    (file.parent / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"without their shape: put config\.json beside it, or give --config"):
        load_model(file, CPU)
    load_model(file, Reading("fp32", "cpu", config=str(tmp_path / "elsewhere.json")))


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_lightning(tmp_path / "run" / "step=3.ckpt")
    (tmp_path / "run" / "config.json").rename(tmp_path / "shape.json")
    load_model(tmp_path / "run" / "step=3.ckpt", Reading("fp32", "cpu", config="~/shape.json"))
    given = Reading(tokenizer="~/words", cache_dir="~/cache")
    assert (given.tokenizer, given.cache_dir) == (f"{tmp_path}/words", f"{tmp_path}/cache")
    (tmp_path / "seen.safetensors").touch()
    source = BehaviourSource({"q": "org/hub-name"}, "~/seen.safetensors")
    assert source.memorisation == f"{tmp_path}/seen.safetensors"
    with pytest.raises(ValueError, match=rf"--choices {tmp_path}/gone.json: there is no such file"):
        BehaviourSource({"q": "~/gone.json"})


@pytest.mark.parametrize(("kind", "head"), [("gpt_neox", "embed_out.weight"), ("olmo2", "lm_head.weight")])
def test_missing_weights_are_an_error_and_not_random(tmp_path: Path, kind: str, head: str) -> None:
    tiny.model(kind).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != head}, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(tmp_path, CPU, head=False)  # hidden states need no head
    with pytest.raises(ValueError, match="lacks 1 of the model's weights"):
        load_model(tmp_path, CPU, head=True)
    norm = next(name for name in weights if "norm" in name)
    save_file({k: v for k, v in weights.items() if k != norm}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the model's weights \(.*norm.*incomplete"):
        load_model(tmp_path, CPU, head=False)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    torch.save({"state_dict": tiny.model().state_dict()}, tmp_path / "step=1.ckpt")
    message = r"2 weights of other shapes.*embed_in\.weight: \(120, 16\), not \(50, 16\)"
    for source in (tmp_path, tmp_path / "step=1.ckpt"):
        with pytest.raises(ValueError, match=message):
            load_model(source, CPU)
