"""Settings of a recipe: the dataclass gives defaults, a YAML file replaces them, the command line wins."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

_MOST_VALUES = 1000


def setting(default: Any, help: str) -> Any:
    """Returns a dataclass field with a default and the help that ``--help`` prints."""
    return dataclasses.field(default=default, metadata={"help": help})


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> str:
    """Returns which settings have changed, in words; empty where none has but those that are ``free`` to."""
    changed = [key for key in now if key not in free and before.get(key) != now[key]]
    return ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed)


class RecipeParser(HfArgumentParser):
    """A parser of one or more dataclasses and ``--config FILE.yaml`` that refuses what it does not know.

    Unlike ``trl.TrlParser`` it reads ``--config=FILE``, takes no abbreviated names (``--learn``), checks the
    types of YAML values, and names the setting that a misspelt key is close to.
    """

    def __init__(self, *settings: type[Any], **options: Any) -> None:
        super().__init__(settings, allow_abbrev=False, **options)
        self.settings = settings
        self.add_argument("--config", metavar="FILE", help="YAML file of settings; the command line wins")

    def parse(self, arguments: Sequence[str] | None = None) -> Any:
        """Returns an instance of the dataclass, or of each in a tuple; ends the program where a setting is wrong."""
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
        built = tuple(kind(**{name: values[name] for name in _names(kind)}) for kind in self.settings)
        return built[0] if len(built) == 1 else built

    def _set_yaml_defaults(self, path: Path) -> None:
        if not path.is_file():
            self.error(f"--config {path}: no such file")
        try:
            values = _read_mapping(path.read_text(encoding="utf-8-sig"))
        except (yaml.YAMLError, ValueError, OSError) as error:
            self.error(f"--config {path}: {error}")
        except RecursionError:
            self.error(f"--config {path}: the settings are nested too deep")
        unknown = set(values) - self._names()
        if unknown:
            names = ", ".join(self._with_near(str(key)) for key in sorted(unknown, key=str))
            self.error(f"--config {path}: unknown key {names}")
        takes_several = {action.dest for action in self._actions if action.nargs in ("+", "*")}
        takes_mapping = {
            field.name
            for kind in self.settings
            for field in dataclasses.fields(kind)
            if "dict" in str(field.type) and "str" in str(field.type)
        }
        for key, value in values.items():
            if isinstance(value, dict) and key in takes_mapping:
                values[key] = json.dumps(value)  # as TrainingArguments take it on the command line
            elif value is None and key in self._required():
                self.error(f"--config {path}: {key} takes no null: leave it out for its default")
            elif isinstance(value, dict) or (isinstance(value, list) and key not in takes_several):
                self.error(f"--config {path}: {key} takes one value, not {value!r}")
        # As strings, so that argparse converts and checks them as it does on the command line: "3e-3" is a
        # string in YAML 1.1, and a default that is not a string would pass unchecked.
        keep = lambda value: value is None or isinstance(value, list)
        self.set_defaults(**{key: value if keep(value) else str(value) for key, value in values.items()})
        for action in self._actions:
            value = values.get(action.dest)
            if action.choices and value is not None and str(value) not in map(str, action.choices):
                self.error(f"--config {path}: {action.dest}={value!r} is not one of {list(action.choices)}")

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message alone: the usage of a hundred settings would hide it."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _required(self) -> set[str]:
        """Settings that are never None."""
        hints = [item for kind in self.settings for item in typing.get_type_hints(kind).items()]
        return {name for name, hint in hints if "None" not in str(hint) and "Optional" not in str(hint)}

    def _names(self) -> set[str]:
        return {name for kind in self.settings for name in _names(kind)}

    def _with_near(self, name: str) -> str:
        near = difflib.get_close_matches(name.lstrip("-").split("=")[0], self._names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the settings"
        return f"{name} ({hint})"


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _read_mapping(text: str) -> dict[str, Any]:
    """Reads settings as the command line would: a single value is what is written, ``1.10`` not ``1.1``.

    Raises:
        yaml.YAMLError: It is no YAML, or would make Python objects.
        ValueError: It is no mapping, or has a key twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("give a mapping of settings to values, and nothing else")
        given = [key.value for key, _ in node.value]
        repeated = [key for key in given if not isinstance(key, str) or given.count(key) > 1]
        if repeated:
            raise ValueError(f"the key {str(repeated[0])[:80]} stands twice or is no name: give each setting one value")
        loader.flatten_mapping(node)
        return {loader.construct_object(key): _value_of(loader, value) for key, value in node.value}
    finally:
        loader.dispose()


def _value_of(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        made = loader.construct_object(node)
        if isinstance(made, bytes):
            raise ValueError("a setting holds !!binary data: write it out")
        return None if made is None else node.value
    nodes, seen = [node], 0
    while nodes:  # aliases of aliases stand for more than memory holds
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"a setting holds more than {_MOST_VALUES} values: write it without aliases")
        parts = nodes.pop().value
        pairs = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        nodes += [part for part in pairs if not isinstance(part, str)]
    made = loader.construct_object(node, deep=True)
    if not isinstance(made, list | dict):
        raise ValueError(f"a setting holds a {type(made).__name__}: give a value, a list or a mapping")
    return made
