"""The command line: `geomcallbacks trace | phases | report`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from geomcallbacks.record import record_file
from geomcallbacks.running.messages import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    from geomcallbacks.trace import command as trace

    parser = argparse.ArgumentParser(prog="geomcallbacks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    trace.add_arguments(commands.add_parser("trace", help="measure saved checkpoints"))
    text = "warm-up, entropy-seeking and compression-seeking phases of the curves in a record file"
    _add_phases(commands.add_parser("phases", help=text, description=text))
    text = "figures and one self-contained HTML page of one or several runs, from their record files"
    _add_report(commands.add_parser("report", help=text, description=text))
    given = parser.parse_args(arguments)
    try:
        return int(given.run(given))
    except (ValueError, OSError, ModuleNotFoundError) as error:  # what the user can put right: the message says how
        print(printable(f"geomcallbacks {given.command}: {error}"), file=sys.stderr)
        return 2


def _add_phases(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `geomcallbacks phases FILE`; see `geomcallbacks.phases`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="geometry.jsonl, or the folder of a run, or a file of `trace`")
    add("--probe", metavar="LABEL", help="this probe only")
    add("--layer", metavar="LABEL", help="this layer only")
    add("--trained", action="store_true", help="the run starts from trained weights: its first fall is no warm-up")
    add("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_phases)


def _phases(given: argparse.Namespace) -> int:
    from geomcallbacks.phases.table import phases_of_file, table

    from_scratch = False if given.trained else None
    file = record_file(given.file)
    curves = phases_of_file(file, probe=given.probe, layer=given.layer, from_scratch=from_scratch)
    if given.json:
        found = [
            {"probe": probe, "layer": layer, "phases": [phase.to_dict() for phase in phases]}
            for (probe, layer), phases in curves.items()
        ]
        print(json.dumps(found, indent=2))
    else:
        parts = [f"probe {probe}, {layer}\n{table(phases)}" for (probe, layer), phases in curves.items()]
        print(printable("\n\n".join(parts)))
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `geomcallbacks report FILE…`; see `geomcallbacks.report`."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="a geometry.jsonl, or the folder of a run")
    add("--out", metavar="FOLDER", help="where to write (default: report, beside the first file)")
    add("--format", choices=("png", "svg"), default="png", help="of the figures (default: png)")
    text = "training loss of each run, in their order: metrics.csv, trainer_state.json or JSON Lines of step and loss"
    add("--loss", action="append", default=[], metavar="FILE", help=f"{text} (default: what is beside the records)")
    add("--title", help="of the page (default: the names of the runs)")
    add("--no-html", action="store_true", help="write the figures alone")
    parser.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> int:
    from geomcallbacks.report import describe_report, write_report

    runs, figures, page = write_report(
        given.files, given.out, kind=given.format, losses=given.loss, title=given.title, page=not given.no_html
    )
    print(printable(describe_report(runs, figures, page)))
    return 0
