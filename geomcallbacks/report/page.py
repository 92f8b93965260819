"""The HTML page of a report: one file that asks for nothing else, with figures, tables and settings.

Text of the runs is escaped by the template engine; the page's policy allows no script, no request and no other style
than its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from geomcallbacks.phases import PHASE_NAMES
from geomcallbacks.report.run import Run, describe_phases
from geomcallbacks.running.files import replace_file
from geomcallbacks.statistics import finite, spearman

_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_METRICS = {"rankme": ".4g", "alpha_req": ".3f", "top1_share": ".3f"}
#: Of a record, and of a header but what identifies the file: how it was measured.
_RECORD = ("probe", "fingerprint", "layer", "module", "positions", "n", "d", "alpha_window", "precision", "convention")
_NOT_SETTINGS = ("kind", "schema", "resumed_from")
#: Shared updates below which no rank correlation is given.
_FEWEST_SHARED = 5

_RowsOf = Callable[[Run], Iterator[list[str]]]


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        file: where it stands.
        title: its name on the page.
        caption: what is seen in it.
    """

    file: Path
    title: str
    caption: str

    @property
    def data(self) -> str:
        """The file as a data: URI. As an image even an SVG runs no script and asks for nothing."""
        return f"data:{_TYPES[self.file.suffix]};base64,{base64.b64encode(self.file.read_bytes()).decode()}"


def write_page(runs: Sequence[Run], figures: Sequence[Figure], path: Path, title: str | None = None) -> Path:
    """Write the page and return `path`.

    Args:
        runs: what the tables tell of.
        figures: in order; their files are read, and stand in the page whole.
        path: the HTML file.
        title: heading. None: the names of the runs.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    from geomcallbacks import __version__

    folder = resources.files("geomcallbacks.report")
    template, style = ((folder / name).read_text("utf-8") for name in ("page.html", "page.css"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    names = [run.name for run in runs]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        title=title or "Geometry of " + (", ".join(names) if len(names) < 5 else f"{len(names)} runs"),
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # ours, not a run's
        runs=runs,
        describe=describe_phases,
        figures=figures,
        tables=_tables(runs),
        phases=PHASE_NAMES,
        version=__version__,
    )
    replace_file(path, _storable(text).encode("utf-8", "replace"))
    return path


def _storable(text: str) -> str:
    """Without the control characters that no HTML file may hold."""
    return "".join(c if c in "\n\t" or (ord(c) > 31 and not 127 <= ord(c) < 160) else "\ufffd" for c in text)


def _tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    heads = ["", "updates", "start", "highest", "end", "ρ with RankMe", "ρ with α"]
    tables = [
        _table("Summary", ["", "update", "RankMe", "α", "λ₁ / Σλ", "training loss"], runs, _marks),
        _table("Phases", ["phase", "from", "95 % interval", "to", "RankMe", "α"], runs, _phases),
        _table("Behaviour beside the geometry", heads, runs, _behaviour),
        _settings(runs),
    ]
    return [table for table in tables if table["rows"]]


def _table(title: str, heads: list[str], runs: Sequence[Run], rows_of: _RowsOf) -> dict[str, Any]:
    """The rows of each run, with its name in front where there are several; all heads but the first are of numbers."""
    several = len(runs) > 1
    rows = [[run.name] * several + row for run in runs for row in rows_of(run)]
    return {"title": title, "heads": ["run"] * several + heads, "rows": rows, "numbers": heads[1:]}


def _marks(run: Run) -> Iterator[list[str]]:
    """Start, boundaries of the phases and end."""
    for name, row in run.marks:
        values = [_shown(finite(row.get(metric)), form) for metric, form in _METRICS.items()]
        step = row["step"]
        losses = [value for update, value in run.loss if step * 10**-0.1 <= update <= max(step, 1)]
        yield [name, f"{step:,}", *values, _shown(sum(losses) / len(losses) if losses else None, ".3f")]


def _phases(run: Run) -> Iterator[list[str]]:
    for phase in run.phases:
        span = "–" if phase.start_interval is None else "{:,g} to {:,g}".format(*phase.start_interval)
        agrees = {None: "", True: ", as expected", False: ", with RankMe"}[phase.agrees]
        change = f"{phase.rankme_start:.4g} → {phase.rankme_end:.4g}"
        yield [phase.name, f"{phase.start:,g}", span, f"{phase.end:,g}", change, (phase.alpha or "–") + agrees]


def _behaviour(run: Run) -> Iterator[list[str]]:
    """The course of each number of behaviour, and its rank correlation with the geometry."""
    for key in (key for key in run.keys if not key.startswith("intervention")):
        points = run.number(key)
        top = max(points, key=lambda point: point.value)
        course = [f"{points[0].value:.4g}", f"{top.value:.4g} at {top.step:,}", f"{points[-1].value:.4g}"]
        values = {point.step: point.value for point in points}
        pairs = [
            [(point.value, values[point.step]) for point in run.metric(name) if point.step in values]
            for name in ("rankme", "alpha_req")
        ]
        rhos = [spearman(*zip(*pair, strict=True)) if len(pair) >= _FEWEST_SHARED else None for pair in pairs]
        yield [key, f"{len(pairs[0])}", *course, *(_shown(finite(rho), ".2f") for rho in rhos)]


def _settings(runs: Sequence[Run]) -> dict[str, Any]:
    """How each run was measured: by a record of it, and by the header of its file."""
    columns = []
    for run in runs:
        row = run.curve()[-1]
        found = {key: row[key] for key in _RECORD if row.get(key) is not None}
        found |= {key: value for key, value in run.header.items() if key not in _NOT_SETTINGS}
        columns.append(dict(_flat(found)))
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    return {"title": "How it was measured", "heads": ["", *(run.name for run in runs)], "rows": rows, "numbers": []}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key} / ")
        else:
            yield f"{prefix}{key}".replace("_", " "), _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value)) or "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("-", "−")
