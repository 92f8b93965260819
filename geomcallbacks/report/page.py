"""The HTML page of a report: one file that asks for nothing else, with figures, tables and settings.

Text of the runs is escaped by the template engine; the page's policy allows no script, no request and no other style
than its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomcallbacks.report.data import Point, Run, number, turning_points
from geomcallbacks.report.style import digits
from geomcallbacks.report.template import PAGE, STYLE
from geomcallbacks.statistics import spearman

if TYPE_CHECKING:
    from geomcallbacks.report import Figure

_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
#: Of a header, what identifies the file rather than how it was measured.
_NOT_SETTINGS = ("kind", "schema", "resumed_from")
#: Shared updates below which no rank correlation is given.
_FEWEST_SHARED = 5


def write_page(runs: Sequence[Run], figures: Sequence[Figure], path: Path, title: str | None = None) -> Path:
    """Write the page; returns `path`.

    Args:
        runs: what the tables tell of.
        figures: in order; their files are read, and stand in the page whole.
        path: the HTML file.
        title: heading. None: the names of the runs.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    from geomcallbacks import __version__
    from geomcallbacks.phases import PHASE_NAMES

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    names = [run.name for run in runs]
    text = template.render(
        title=title or "Geometry of " + (", ".join(names) if len(names) < 5 else f"{len(names)} runs"),
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(STYLE),  # ours, not a run's
        runs=[{"name": run.name, "words": _words(run)} for run in runs],
        figures=[{"title": f.title, "caption": f.caption, "data": _data(f.file)} for f in figures],
        tables=list(_tables(runs)),
        phases=PHASE_NAMES,
        version=__version__,
    )
    path.unlink(missing_ok=True)  # never through a link that came with a run's folder
    path.write_text(_printable(text), encoding="utf-8")
    return path


def _printable(text: str) -> str:
    """Without the control characters and lone surrogates that no HTML file may hold."""
    kept = "".join(c if c in "\n\t" or (ord(c) > 31 and not 127 <= ord(c) < 160) else "\ufffd" for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8")


def _data(file: Path) -> str:
    """A figure as a data: URI. As an image even an SVG runs no script and asks for nothing."""
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _words(run: Run) -> str:
    """What happened in a run, in a sentence or two."""
    rows = run.metric("rankme")
    said = f"{len(rows)} measurements, update {rows[0].step:,} to {rows[-1].step:,}. "
    if not run.phases:
        return said + f"RankMe {digits(rows[0].value)} → {digits(rows[-1].value)}; no phase stands out of the curve."
    names = [f"{phase.name} (RankMe {digits(phase.rankme_start)} → {digits(phase.rankme_end)})" for phase in run.phases]
    turns = [f"update {phase.start:,g}" for phase in run.phases[1:]]
    joined = names[0] + "".join(f", from {turn} {name}" for turn, name in zip(turns, names[1:], strict=True))
    return f"{said}{joined[0].upper()}{joined[1:]}."


def _tables(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    yield _summary(runs)
    if any(run.phases for run in runs):
        yield _phases(runs)
    if any(rows := list(_correlations(runs))):
        heads = ["", "run", "updates", "start", "highest", "end", "ρ with RankMe", "ρ with α"]
        note = (
            "ρ: Spearman’s rank correlation over the updates at which both were measured. Neighbouring updates "
            "resemble each other, so no interval is given; what rises throughout correlates with all that does."
        )
        yield _table(
            "Behaviour beside the geometry", heads, rows, heads[2:], note, drop="run" if len(runs) == 1 else ""
        )
    yield _settings(runs)


def _table(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[str],
    note: str = "",
    drop: str = "",
) -> dict[str, Any]:
    kept = [index for index, head in enumerate(heads) if not drop or head != drop]
    shown = [[row[index] for index in kept] for row in rows]
    return {"title": title, "heads": [heads[i] for i in kept], "rows": shown, "numbers": list(numbers), "note": note}


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    heads = ["run", "", "start", "trough", "peak", "end"]
    rows = []
    for run in runs:
        records = [row for row in run.curve() if number(row.get("rankme")) is not None]
        trough, peak = turning_points([float(row["rankme"]) for row in records])
        marks = [records[0], records[trough], records[peak], records[-1]]
        rows.append([run.name, "update", *(f"{row['step']:,}" for row in marks)])
        for name, label, form in (
            ("rankme", "RankMe", ".4g"),
            ("alpha_req", "α", ".3f"),
            ("top1_share", "λ₁ / Σλ", ".3f"),
        ):
            rows.append([run.name, label, *(_shown(row.get(name), form) for row in marks)])
        if run.loss:
            rows.append([run.name, "training loss", *(_loss_at(run, row["step"]) for row in marks)])
    note = (
        "Trough: where RankMe is lowest; peak: where it is highest from there on. Loss: mean of those logged within a "
        "tenth of a decade before."
    )
    return _table("Summary", heads, rows, heads[2:], note, drop="run" if len(runs) == 1 else "")


def _phases(runs: Sequence[Run]) -> dict[str, Any]:
    heads = ["run", "phase", "from", "95 % interval", "to", "RankMe", "α"]
    rows = []
    for run in runs:
        for phase in run.phases:
            span = "–" if phase.start_interval is None else "{:,g} to {:,g}".format(*phase.start_interval)
            alpha = {None: "–", True: f"{phase.alpha}, as expected", False: f"{phase.alpha}, with RankMe"}.get(
                phase.agrees, "–"
            )
            alpha = "flat" if phase.alpha == "flat" else alpha
            change = f"{phase.rankme_start:.4g} → {phase.rankme_end:.4g}"
            rows.append([run.name, phase.name, f"{phase.start:,g}", span, f"{phase.end:,g}", change, alpha])
    note = (
        "Found from RankMe alone: it falls in warm-up and in compression-seeking, and rises in entropy-seeking. "
        "Interval: of the boundary at which the phase begins."
    )
    if len(runs) > 1:
        return _table("Phases", heads, rows, heads[2:6], note)
    return _table("Phases", heads[1:], [row[1:] for row in rows], heads[2:6], note)


def _correlations(runs: Sequence[Run]) -> Iterator[list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run.keys if not key.startswith("intervention"))
    for key in keys:
        for run in runs:
            points = run.number(key)
            if not points:
                continue
            shared = {name: _shared(run.metric(name), points) for name in ("rankme", "alpha_req")}
            top = max(points, key=lambda point: point.value)
            numbers = [f"{points[0].value:.4g}", f"{top.value:.4g} at {top.step:,}", f"{points[-1].value:.4g}"]
            rhos = [
                _shown(spearman(*zip(*p, strict=True)), ".2f") if len(p) >= _FEWEST_SHARED else "–"
                for p in shared.values()
            ]
            yield [key, run.name, f"{len(shared['rankme'])}", *numbers, *rhos]


def _shared(metric: Sequence[Point], points: Sequence[Point]) -> list[tuple[float, float]]:
    values = {point.step: point.value for point in points}
    return [(point.value, values[point.step]) for point in metric if point.step in values]


def _settings(runs: Sequence[Run]) -> dict[str, Any]:
    columns = [dict(_flat(_about(run))) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    heads = ["", *(run.name for run in runs)] if len(runs) > 1 else ["", "value"]
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    return _table("How it was measured", heads, rows, [])


def _about(run: Run) -> dict[str, Any]:
    """Settings of a run: of its records, and of the header of its file, which says nothing of the environment."""
    row = run.curve()[-1]
    keys = ("probe", "fingerprint", "layer", "module", "positions", "n", "d", "alpha_window", "precision", "convention")
    header = {key: value for key, value in run.header.items() if key not in _NOT_SETTINGS}
    return {key: row[key] for key in keys if row.get(key) is not None} | header


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key} / ")
        else:
            yield f"{prefix}{key}".replace("_", " "), _as_text(value)


def _as_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value)) or "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shown(value: Any, form: str) -> str:
    found = number(value)
    return "–" if found is None else format(found, form).replace("-", "−")


def _loss_at(run: Run, step: int) -> str:
    near = [value for update, value in run.loss if step * 10**-0.1 <= update <= max(step, 1)]
    return _shown(sum(near) / len(near) if near else math.nan, ".3f")
