"""What the hub's cache holds without a network, and what is deleted from it."""

from __future__ import annotations

import threading
from pathlib import Path

import hub_cache
import huggingface_hub
import pytest
from huggingface_hub import constants

from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.fetching import fetch_ahead
from geomcallbacks.trace.checkpoints.find import find_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub


def test_the_cache_is_listed_without_a_network(tmp_path: Path) -> None:
    for revision in ("step8", "step1000", "main"):
        hub_cache.add_revision(tmp_path, "org/tiny", revision, {"config.json": b"{}", "model.safetensors": b"w"})
    hub = Hub(tmp_path)
    assert sorted(hub.revisions("org/tiny")) == ["main", "step1000", "step8"]
    assert hub.fetch("org/tiny", "step8", weights=False).name == hub_cache.commit_of("org/tiny", "step8")
    remedy = r"org/tiny@step9 is .*not in the hub's cache.*hf download org/tiny --revision step9.*HF_HUB_OFFLINE"
    with pytest.raises(ValueError, match=remedy):
        hub.fetch("org/tiny", "step9")
    with pytest.raises(ValueError, match=r"org/other is .*not in the hub's cache.*download org/other`"):
        hub.revisions("org/other")
    hub.evict()
    assert sorted(hub.cached("org/tiny")) == ["main", "step1000", "step8"]  # nothing of it was fetched here
    for ref in (tmp_path / "models--org--tiny" / "refs").iterdir():
        ref.unlink()
    commit = hub_cache.commit_of("org/tiny", "main")  # a snapshot may be known by its commit alone
    (found,) = find_checkpoints([f"org/tiny@{commit}"], hub)
    assert hub.fetch(found.model, found.revision).name == commit


def test_a_shortened_list_of_revisions_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    hub_cache.add_revision(tmp_path, "org/olmo", "stage1-step10-tokens1B", {"config.json": b"{}"})
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.warns(UserWarning, match=r"cannot be reached .*no route.*only the 1 revisions of org/olmo"):
        find_checkpoints(["org/olmo"], Hub(tmp_path), "stage1-step10-tokens1B")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the user knows
    assert [each.step for each in find_checkpoints(["org/olmo"], Hub(tmp_path), "all")] == [10]
    hub_cache.add_revision(tmp_path, "org/olmo", "stage2-ingredient1-step5-tokens1B", {"config.json": b"{}"})
    with pytest.warns(UserWarning, match="stages are placed by them alone"):
        assert [each.step for each in find_checkpoints(["org/olmo"], Hub(tmp_path), "all")] == [10, 15]


def test_a_fetch_that_broke_off_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*_: object, **__: object) -> None:
        hub_cache.add_revision(tmp_path, "org/x", "step2", {"config.json": b"half"})
        hub_cache.add_revision(tmp_path, "org/x", "step3", {"config.json": b"another process's"})
        raise OSError("no space left")

    hub_cache.add_revision(tmp_path, "org/x", "step1", {"config.json": b"before"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", half)
    hub = Hub(tmp_path)
    with pytest.raises(OSError, match="no space left"):
        hub.fetch("org/x", "step2")
    hub.evict(keep=("org/x", "step2"))
    snapshots = hub_cache.snapshots(tmp_path, "org/x")
    assert len(list(snapshots.iterdir())) == 3
    hub.evict()
    assert {each.name for each in snapshots.iterdir()} == {hub_cache.commit_of("org/x", f"step{k}") for k in (1, 3)}


def test_the_next_checkpoint_is_fetched_while_one_is_measured(tmp_path: Path) -> None:
    asked = [threading.Event() for _ in range(3)]

    class Listening(Hub):
        def fetch(self, model: str, revision: str, *, weights: bool = True) -> Path:
            asked[int(revision)].set()
            return Path(revision)

    curve = [Checkpoint("org/x", str(step), step) for step in range(3)]
    for checkpoint, fetched in fetch_ahead(curve, Listening(tmp_path), evict=False):
        assert fetched.result() == Path(checkpoint.revision)
        assert all(event.wait(30) for event in asked[: checkpoint.step + 2])
        assert not any(event.is_set() for event in asked[checkpoint.step + 2 :])
