"""The command line: `geomcallbacks trace | phases | report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from geomcallbacks.running.messages import printable


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
        print(printable(f"geomcallbacks {given.command}: {error}"), file=sys.stderr)
        return 2


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`geomcallbacks trace MODEL…`: see `geomcallbacks.trace`."""
    from geomcallbacks.trace import command

    command.add_arguments(commands.add_parser("trace", help="measure saved checkpoints"))


def _add_phases(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`geomcallbacks phases FILE`: see `geomcallbacks.phases`."""
    text = "warm-up, entropy-seeking and compression-seeking phases of the curves in a record file"
    parser = commands.add_parser("phases", help=text, description=text)
    parser.add_argument("file", metavar="FILE", help="geometry.jsonl, or the folder of a run, or a file of `trace`")
    parser.add_argument("--probe", metavar="LABEL", help="this probe only")
    parser.add_argument("--layer", metavar="LABEL", help="this layer only")
    parser.add_argument(
        "--trained", action="store_true", help="the run starts from trained weights: its first fall is no warm-up"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_phases)


def _phases(given: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from geomcallbacks.phases.table import phases_of_file, table
    from geomcallbacks.report.data import record_file

    from_scratch = False if given.trained else None
    file = record_file(Path(given.file))
    curves = phases_of_file(file, probe=given.probe, layer=given.layer, from_scratch=from_scratch)
    if given.json:
        found = [
            {"probe": probe, "layer": layer, "phases": [phase.to_dict() for phase in phases]}
            for (probe, layer), phases in curves.items()
        ]
        print(json.dumps(found, indent=2))
        return 0
    parts = [f"probe {probe}, {layer}\n{table(phases)}" for (probe, layer), phases in curves.items()]
    print(printable("\n\n".join(parts)))
    return 0


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`geomcallbacks report FILE…`: see `geomcallbacks.report`."""
    about = "Figures and one self-contained HTML page of one or several runs, from their record files."
    parser = commands.add_parser("report", help="draw figures and a page of one or several runs", description=about)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a geometry.jsonl, or the folder of a run")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: report, beside the first file)")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the figures (default: png)")
    parser.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="FILE",
        help="training loss: metrics.csv, trainer_state.json or JSON Lines with step and loss; once for each run, in "
        "their order (default: what stands beside the records)",
    )
    parser.add_argument("--title", help="of the page (default: the names of the runs)")
    parser.add_argument("--no-html", action="store_true", help="write the figures alone")
    parser.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> int:
    from geomcallbacks.report import describe_report, write_report

    try:
        runs, figures, page = write_report(
            given.files, given.out, kind=given.format, losses=given.loss, title=given.title, page=not given.no_html
        )
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    print(printable(describe_report(runs, figures, page)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
