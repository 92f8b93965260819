"""What the tests of the recipes share: a cache of data sets each, a base, and the stages that follow it."""

from __future__ import annotations

from pathlib import Path

import datasets
import grpo
import micro
import pytest


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def even_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a policy of a thousand parameters can earn."""
    monkeypatch.setitem(grpo.VERIFIERS, "integer", lambda: micro.EVEN_LENGTH)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def chain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """pretrain → SFT → DPO → GRPO; no test changes their folders."""
    root, found = tmp_path_factory.mktemp("chain"), {"base": base}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grpo.VERIFIERS, "integer", lambda: micro.EVEN_LENGTH)
        for recipe in micro.MODULES:
            found[recipe] = micro.run(recipe, root / recipe, **micro.start_of(found, recipe))
    return found
