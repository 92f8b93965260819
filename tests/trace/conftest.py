"""What the tests of a trace share: texts in the words of the tiny tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from geomcallbacks.trace import ProbeSource


@pytest.fixture
def source(tmp_path: Path) -> ProbeSource:
    """A probe of 80 of 100 texts, in a folder of their own."""
    file = tmp_path / "texts" / "texts.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.texts(100)))
    return ProbeSource(str(file), rows=80, length=40)
