"""Which checkpoints MODEL… name, in folders and on the hub, and in which order they stand on a curve."""

from __future__ import annotations

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
