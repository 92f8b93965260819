"""The command line: `geomcallbacks trace | phases | report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="geomcallbacks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_trace(commands)
    _add_phases(commands)
    _add_report(commands)
    given = parser.parse_args(arguments)
    try:
        return int(given.run(given))
    except (ValueError, OSError) as error:  # what the user can put right: the message says how
        print(f"geomcallbacks {given.command}: {error}", file=sys.stderr)
        return 2


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`geomcallbacks trace MODEL…`: see `geomcallbacks.trace`."""


def _add_phases(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`geomcallbacks phases FILE`: see `geomcallbacks.phases`."""


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`geomcallbacks report FILE…`: see `geomcallbacks.report`."""


if __name__ == "__main__":
    sys.exit(main())
