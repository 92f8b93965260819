"""Settings of a recipe: the dataclass gives defaults, a YAML file replaces them, the command line wins."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

T = TypeVar("T")


def setting(default: Any, help: str) -> Any:
    """Returns a dataclass field with a default and the help that ``--help`` prints."""
    return dataclasses.field(default=default, metadata={"help": help})


class RecipeParser(HfArgumentParser):
    """A parser of one dataclass and ``--config FILE.yaml`` that refuses what it does not know.

    Unlike ``trl.TrlParser`` it reads ``--config=FILE``, takes no abbreviated names (``--learn``), checks the
    types of YAML values, and names the setting that a misspelt key is close to.
    """

    def __init__(self, settings: type[Any], **options: Any) -> None:
        super().__init__(settings, allow_abbrev=False, **options)
        self.settings = settings
        self.add_argument("--config", metavar="FILE", help="YAML file of settings; the command line wins")

    def parse(self, arguments: Sequence[str] | None = None) -> Any:
        """Returns an instance of the dataclass; ends the program where a setting is unknown or wrong."""
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.add_argument("--config")
        config = before.parse_known_args(arguments)[0].config
        if config is not None:
            self._set_yaml_defaults(Path(config))
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            names = [argument for argument in unknown if argument.startswith("--")] or unknown
            self.error("; ".join(f"unknown argument {self._with_near(name)}" for name in names))
        values = vars(given)
        del values["config"]
        return self.settings(**values)

    def _set_yaml_defaults(self, path: Path) -> None:
        if not path.is_file():
            self.error(f"--config {path}: no such file")
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            self.error(f"--config {path}: give a mapping of settings to values, not a {type(values).__name__}")
        unknown = set(values) - self._names()
        if unknown:
            names = ", ".join(self._with_near(str(key)) for key in sorted(unknown, key=str))
            self.error(f"--config {path}: unknown key {names}")
        for key, value in values.items():
            if isinstance(value, (dict, list)):
                self.error(f"--config {path}: {key} takes one value, not {value!r}")
        # As strings, so that argparse converts and checks them as it does on the command line: "3e-3" is a
        # string in YAML 1.1, and a default that is not a string would pass unchecked.
        self.set_defaults(**{key: None if value is None else str(value) for key, value in values.items()})
        for action in self._actions:
            value = values.get(action.dest)
            if action.choices and value not in (None, *action.choices):
                self.error(f"--config {path}: {action.dest}={value!r} is not one of {list(action.choices)}")

    def _names(self) -> set[str]:
        return {field.name for field in dataclasses.fields(self.settings)}

    def _with_near(self, name: str) -> str:
        near = difflib.get_close_matches(name.lstrip("-").split("=")[0], self._names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the settings"
        return f"{name} ({hint})"
