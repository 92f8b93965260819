"""Settings of a recipe: the dataclass gives defaults, a YAML file replaces them, the command line wins."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import yaml
from trl import TrlParser

_PLAIN = (str, int, float, datetime.date)  # what one value of a YAML file is read as


def setting(default: Any, help: str) -> Any:
    """Return a dataclass field with a default and the help that ``--help`` prints."""
    return dataclasses.field(default=default, metadata={"help": help})


class RecipeParser(TrlParser):
    """TRL's parser of dataclasses and ``--config FILE.yaml``, with errors of one line.

    Unlike its base class it checks the values of the YAML file as those of the command line, takes no abbreviated
    names (``--learn``), and names the setting that an unknown one is close to.
    """

    def __init__(self, *settings: type[Any], **options: Any) -> None:
        help = "--config FILE reads settings from a YAML file; the command line wins"
        super().__init__(settings, allow_abbrev=False, epilog=help, **options)
        self._hints = {name: str(hint) for kind in settings for name, hint in typing.get_type_hints(kind).items()}

    def parse(self, arguments: Sequence[str] | None = None) -> Any:
        """Return an instance of the dataclass, or of each in a tuple; end the program where a setting is wrong."""
        words = sys.argv[1:] if arguments is None else arguments
        split = (word.split("=", 1) if word.startswith("--config=") else [word] for word in words)
        try:
            built = self.parse_args_and_config([part for parts in split for part in parts])
        except IndexError:
            self.error("--config: name a YAML file")
        except (yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
            self.error(str(error))
        return built[0] if len(built) == 1 else built

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what the command line holds and no setting is, before any dataclass is built."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse([word for word in unknown if word.startswith("--")] or unknown)
        return found, unknown

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Set defaults to the values of a YAML file, as text: argparse converts and checks the defaults that are.

        ``3e-3`` is text in YAML 1.1, and a default that is none would pass unchecked.
        """
        if unknown := config.keys() - self._hints.keys():
            self._refuse(sorted(unknown))
        for key, value in config.items():
            if isinstance(value, _PLAIN):
                config[key] = str(value)
            elif (kind := "None" if value is None else type(value).__name__) not in self._hints[key]:
                self.error(f"{key} takes one value, not a {kind}: leave it out for its default")
        for action in self._actions:
            value = config.get(action.dest)
            if action.choices and value is not None and value not in map(str, action.choices):
                self.error(f"{action.dest}={value!r} is not one of {list(action.choices)}")
        return super().set_defaults_with_config(**config)

    def error(self, message: str) -> NoReturn:
        """End the program with the message alone: the usage of a hundred settings would hide it."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _refuse(self, names: Iterable[str]) -> NoReturn:
        found = {name: difflib.get_close_matches(name.strip("-").split("=")[0], self._hints, n=1) for name in names}
        hints = (f"did you mean {near[0]}?" if near else "--help lists the settings" for near in found.values())
        self.error("unknown " + ", ".join(f"{name} ({hint})" for name, hint in zip(found, hints, strict=True)))
