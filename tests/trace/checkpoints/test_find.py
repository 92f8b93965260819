"""Which checkpoints MODEL… name, in folders and on the hub, and in which order they stand on a curve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.find import find_checkpoints
from geomcallbacks.trace.checkpoints.folders import folder_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub


class Listed(Hub):
    """Repositories by name."""

    def __init__(self, **repositories: list[str]) -> None:
        self.repositories = {name.replace("__", "/"): names for name, names in repositories.items()}

    def revisions(self, model: str) -> list[str]:
        return self.repositories[model]


def test_one_model_stands_at_its_own_steps_and_several_at_their_places() -> None:
    hub = Listed(a__x=["step8", "step512", "step1000", "main"], b__y=["main"])
    found = find_checkpoints(["a/x"], hub, "step1000,step8", tokens_per_update=10)
    assert [(c.revision, c.step, c.tokens) for c in found] == [("step8", 8, 80), ("step1000", 1000, 10_000)]
    assert [(c.revision, c.step) for c in find_checkpoints(["a/x"], hub)] == [("main", 0)]
    pythia = Listed(**{"EleutherAI/pythia-160m": ["step512"]})
    (found,) = find_checkpoints(["EleutherAI/pythia-160m"], pythia, ["step512"])
    assert found.tokens == 512 * 2_097_152  # 1.07e9: where the paper's warm-up ends
    curve = find_checkpoints(["b/y", "a/x@step512", "a/x"], hub)
    assert [(str(c), c.step) for c in curve] == [("b/y@main", 0), ("a/x@step512", 1), ("a/x@main", 2)]
    assert {c.tokens for c in curve} == {None}
    with pytest.raises(ValueError, match=r"a/x@main has no step in its name.*MODEL of its own"):
        find_checkpoints(["a/x"], hub, "step8,main")


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "no MODEL"),
        (["o/o"], {"revisions": "all"}, "both stand at step 1000: trace them as two curves"),
        (["o/o@step8"], {"revisions": "main"}, "o/o@step8 names its revision itself"),
        (["o/o"], {"tokens_per_update": -5}, "--tokens-per-update -5: give a positive number"),
        (["no/where/here"], {}, "is no folder, and no hub name"),
        (["o/../o"], {}, "is no folder, and no hub name"),
        (["o/o@../../outside"], {}, "is not one of the 4 of o/o"),
    ],
)
def test_what_names_no_curve_is_refused(models: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_checkpoints(models, Listed(o__o=["step1000-tokens2B", "step1000", "step8", "main"]), **options)


def test_folders_of_all_kinds_are_listed(tmp_path: Path) -> None:
    for name in ("trainer/checkpoint-8", "trainer/checkpoint-64", "trainer/runs", "mine/checkpoints/step-000002"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one", "empty"):
        (tmp_path / name).mkdir()
    step = tmp_path / "mine" / "checkpoints" / "step-000002"
    for folder in (tmp_path / "trainer", tmp_path / "one", step):  # the final model, beside its checkpoints; one model
        (folder / "config.json").write_text("{}")
    found = folder_checkpoints(tmp_path / "trainer")
    assert [(each.revision, each.step) for each in found] == [("checkpoint-8", 8), ("checkpoint-64", 64)]
    for given in ("mine", "mine/checkpoints"):
        assert [each.source for each in folder_checkpoints(tmp_path / given)] == [step]
    assert find_checkpoints([str(step)], Listed()) == [Checkpoint("step-000002", "step-000002", 2, None, step)]
    for revisions in (None, "all", "log"):
        one = find_checkpoints([str(tmp_path / "one")], Listed(), revisions)
        assert one == [Checkpoint("one", "one", 0, None, tmp_path / "one")]
    with pytest.raises(ValueError, match="revision 'nonsense' is not one of the 1 of"):
        find_checkpoints([str(tmp_path / "one")], Listed(), "nonsense")
    with pytest.raises(ValueError, match=r"empty holds no checkpoints: none of .*give the folder that does"):
        find_checkpoints([str(tmp_path / "empty")], Listed())
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a file: give the folder of a model, or a Lightning checkpoint"):
        find_checkpoints([str(tmp_path / "weights.bin")], Listed())


def test_lightning_files_are_thinned_by_their_steps_and_a_torn_one_stands_apart(tmp_path: Path) -> None:
    for step in range(10, 101):
        (tmp_path / f"epoch=0-step={step}.ckpt").touch()
    torch.save({"global_step": 100}, tmp_path / "last.ckpt")  # a copy
    torch.save({"global_step": 5}, tmp_path / "best.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    found = find_checkpoints([str(tmp_path)], Listed(), "log")
    assert [each.step for each in found if each.problem is None] == [5, 10, 13, 18, 24, 32, 42, 56, 75, 100]
    (torn,) = (each for each in found if each.problem is not None)
    assert (torn.revision, torn.step < 0) == ("torn", True)
    assert "global_step cannot be read" in str(torn.problem)
    assert len(find_checkpoints([str(tmp_path)], Listed(), "all")) == 93


def test_a_slash_in_a_lightning_name_makes_folders_which_are_looked_into(tmp_path: Path) -> None:
    for step in (5, 10):  # ModelCheckpoint(filename="{step}-{geometry/rankme:.2f}")
        file = tmp_path / "checkpoints" / f"step={step}-geometry" / f"rankme={step}.21.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
    unnamed = tmp_path / "checkpoints" / "best-geometry" / "rankme=7.00.ckpt"
    unnamed.parent.mkdir()
    torch.save({"global_step": 20}, unnamed)
    torch.save({"global_step": 20}, tmp_path / "checkpoints" / "last.ckpt")
    other = tmp_path / "checkpoints" / "geometry-2" / "step=3.ckpt"  # a run of its own is no part of this curve
    other.parent.mkdir()
    other.touch()
    (other.parent / "hparams.yaml").touch()
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "last.ckpt").touch()
    names = ["step=5-geometry/rankme=5.21", "step=10-geometry/rankme=10.21", "best-geometry/rankme=7.00"]
    for given in (tmp_path, tmp_path / "checkpoints"):
        found = find_checkpoints([str(given)], Listed())
        assert [(each.revision, each.step, each.problem) for each in found] == [
            (name, step, None) for name, step in zip(names, (5, 10, 20), strict=True)
        ]


def test_folders_whose_names_tell_no_step_are_asked_about(tmp_path: Path) -> None:
    for name in ("epoch_0", "epoch_1", "best", "logs_1"):
        (tmp_path / name).mkdir()
    for name in ("epoch_0", "epoch_1", "best"):
        (tmp_path / name / "config.json").write_text("{}")
    given = [str(tmp_path)]
    with pytest.raises(
        ValueError, match=r"epoch_0, epoch_1 of .*--revisions epoch_0=STEP,epoch_1=STEP.*own \(/.*/epoch_0\)"
    ):
        find_checkpoints(given, Listed())
    found = find_checkpoints(given, Listed(), "epoch_1=200,epoch_0=100")
    assert [(each.revision, each.step) for each in found] == [("epoch_0", 100), ("epoch_1", 200)]
    (tmp_path / "step_50").mkdir()
    with pytest.warns(UserWarning, match=r"left out: epoch_0, epoch_1 of"):
        assert [each.step for each in find_checkpoints(given, Listed())] == [50]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["geometry.jsonl"], r"has saved no checkpoints: train with .*save_steps=N.*every_n_train_steps=N"),
        (["trainer_state.json"], r"has saved no checkpoints"),
        (
            ["pytorch_model.bin"],
            r"weights \(pytorch_model.bin\) without their shape: put the model's config.json",
        ),
        (["weights.pth"], r"it holds weights \(weights.pth\) without their shape"),
        (
            ["a/geometry.jsonl", "b/geometry.jsonl"],
            r"holds no checkpoints itself, and runs do: .*/a, .*/b$",
        ),
        (["zero_to_fp32.py", "global_step5/x.pt"], r"DeepSpeed has saved it in shards: run `python .*zero_to_fp32.py"),
    ],
    ids=str,
)
def test_a_folder_without_checkpoints_is_told_what_it_is(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        find_checkpoints([str(tmp_path)], Listed())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["checkpoint-5/pytorch_model_fsdp_0/.metadata", "checkpoint-5/config.json"], "accelerate merge-weights"),
        (["checkpoint-5/zero_to_fp32.py", "checkpoint-5/config.json"], "zero_to_fp32.py .* --safe_serialization"),
        (
            ["step=5.ckpt/.metadata", "step=5.ckpt/meta.pt"],
            r"lightning.*consolidate_checkpoint .*whole-step=5\.ckpt`",
        ),
        (["step-5/.metadata", "step-5/__0_0.distcp"], r"format_utils dcp_to_torch .*/step-5 "),
        (["checkpoint-5/model.safetensors"], "without their shape: put the model's config.json"),
        (["step=5.ckpt/checkpoint/x.pt"], r"run `python -c .*convert_zero_checkpoint.*whole-step=5\.ckpt'\)\"`"),
        (["step=5.ckpt/readme"], "it is a folder, not a file of Lightning's"),
        (
            ["iter_0000005/mp_rank_00/model_optim_rng.pt"],
            r"model_optim_rng\.pt.*turn into its format first",
        ),  # Megatron
    ],
    ids=str,
)
def test_shards_are_told_apart_with_the_command_that_joins_them(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (found,) = find_checkpoints([str(tmp_path)], Listed())
    assert re.search(message, found.problem or "")
