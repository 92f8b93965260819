"""Every setting stands once: constructors, documentation and the README's table agree with the dataclass."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import geomcallbacks.behaviour.hf
import geomcallbacks.behaviour.lightning
import geomcallbacks.hf
import geomcallbacks.lightning
from geomcallbacks import GeometryMonitor, ProbeSet
from geomcallbacks.behaviour import BehaviourMonitor
from geomcallbacks.settings import ReadingSettings, Settings

README = Path(__file__).parent.parent / "README.md"


def arguments(function: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default of each argument that has a default or is given by name."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    assert not any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters)
    return {one.name: (hints[one.name], one.default) for one in parameters if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "kind", [GeometryMonitor, geomcallbacks.hf.GeometryCallback, geomcallbacks.lightning.GeometryCallback]
)
def test_constructors_spell_the_settings_out(kind: type) -> None:
    hints = get_type_hints(Settings)
    assert arguments(kind.__init__) == {field.name: (hints[field.name], field.default) for field in fields(Settings)}


def test_behaviour_constructors_agree() -> None:
    kinds = (
        BehaviourMonitor,
        geomcallbacks.behaviour.hf.BehaviourCallback,
        geomcallbacks.behaviour.lightning.BehaviourCallback,
    )
    assert len({str(arguments(kind.__init__)) for kind in kinds}) == 1
    assert {"schedule", "path", "on_error", "total_steps"} == set(arguments(BehaviourMonitor.__init__))


def test_probes_of_texts_and_of_columns_take_the_same() -> None:
    wanted = arguments(ProbeSet.from_texts)
    for function in (ProbeSet.from_dataset, ProbeSet.split):
        given = arguments(function)
        assert given.pop("text_column") == (str, "text")
        assert given == wanted


def documented(kind: type) -> dict[str, str]:
    """What the docstring says of each attribute."""
    part = re.search(r"^Attributes:\n(.*?)(?=^\S|\Z)", inspect.getdoc(kind) or "", re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", part[1], re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in entries}


def test_the_readme_s_table_is_that_of_the_settings() -> None:
    said = documented(ReadingSettings) | documented(Settings)
    assert list(said) == [field.name for field in fields(Settings)]
    default = {"schedule": "Schedule()"} | {
        f.name: f'"{f.default}"' for f in fields(Settings) if isinstance(f.default, str)
    }
    rows = [f"| `{f.name}` | `{default.get(f.name, f.default)}` | {said[f.name]} |" for f in fields(Settings)]
    missing = [row for row in rows if row not in README.read_text(encoding="utf-8")]
    assert not missing, "README.md lacks:\n" + "\n".join(missing)
