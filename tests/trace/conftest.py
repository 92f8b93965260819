"""What the tests of a trace share: a hub's cache of tiny models, and texts in their words."""

from __future__ import annotations

import json
from pathlib import Path

import hub_cache
import pytest
import tiny

from geomcallbacks.trace import ProbeSource, Reading

NEOX = {"step0": 0, "step8": 1, "step1000": 2, "main": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with a model under several revisions, and one without a tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    for revision, seed in NEOX.items():
        hub_cache.add_revision(folder, "org/neox", revision, hub_cache.model_files(seed))
    hub_cache.add_revision(folder, "org/mute", "main", hub_cache.model_files(0, tokenizer=False))
    return folder


@pytest.fixture
def read(cache: Path) -> Reading:
    return Reading(cache_dir=str(cache), device="cpu")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.texts(100)))
    return file


@pytest.fixture
def source(texts: Path) -> ProbeSource:
    return ProbeSource(str(texts), rows=80, length=40)
