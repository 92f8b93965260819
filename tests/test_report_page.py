"""The report: what is read of a run, the figures, the page; and a browser that opens it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import torch
from browser import BINARY, Browser

from geomcallbacks.cli import main
from geomcallbacks.report import plot_analysis, write_report
from geomcallbacks.report.axes import spread
from geomcallbacks.report.data import read_runs
from geomcallbacks.report.loss import find_loss, read_loss
from geomcallbacks.report.style import plain
from geomcallbacks.running.writer import RecordWriter

STEPS = [0, *(round(10 ** (k / 6)) for k in range(3, 22))]
HOSTILE = "<script>alert(1)</script>"
NASTY = [
    HOSTILE,
    '"><img src=x onerror=alert(2)>',
    "$x_{",
    r"$\frac{$ a$",
    "--><b>",
    "名前 α\u202e",
    "\x1b[31m&amp;",
    "'",
]
HEADER = {
    "settings": {"layers": -1, "from_scratch": True, "schedule": {"every": None, "at": []}},
    "versions": {"torch": "2.13.0"},
    "probes": {"probe": {"fingerprint": "feed", "rows": 256}},
}


def rankme(step: int, seed: int = 0) -> float:
    """A fall to 4 at update 32 or so, a rise to 22 at 1,000, and a fall; hardly any noise."""
    x = math.log10(1 + step)
    curve = np.interp(x, [0, 0.5, 1.5, 3.0, 3.6], [20.0, 19.0, 4.0, 22.0, 15.0])
    return float(curve * math.exp(0.004 * math.sin(37 * step + seed)))


def write_run(
    folder: Path,
    *,
    probes: list[str] | None = None,
    layers: list[str] | None = None,
    numbers: dict[str, float] | None = None,
    header: dict[str, Any] | None = None,
    name: str = "geometry.jsonl",
) -> Path:
    """A run of a curve with all three phases; `numbers` are behaviour, as multiples of the log of the update."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(folder / name, 0, HEADER | (header or {}))
    for step in STEPS:
        values = torch.arange(1, 33, dtype=torch.float64) ** -(20 / rankme(step))
        pairs = [(probe, layer) for probe in probes or ["probe"] for layer in layers or ["layer2"]]
        spectra = writer.write_spectra(step, {str(index): values for index in range(len(pairs))})
        for index, (probe, layer) in enumerate(pairs):
            writer.write(
                {
                    "step": step, "tokens": 512 * step, "probe": probe, "fingerprint": "feed", "layer": layer,
                    "positions": 8, "n": 2048, "d": 32, "alpha_window": [4, 24], "precision": "fp32",
                    "spectrum": [spectra, str(index)], "reasons": {}, "intervals": {},
                    "rankme": rankme(step) * (1 + index), "alpha_req": 20 / rankme(step), "top1_share": 0.2,
                }
            )  # fmt: skip
    writer.close()
    if numbers:
        beside = RecordWriter(folder / name.replace("geometry", "behaviour"), 0, {"measures": {}})
        for step in STEPS[::2]:
            beside.write({"step": step, "seconds": 0.1} | {k: v * math.log10(10 + step) for k, v in numbers.items()})
        beside.close()
    return folder / name


def write_loss(folder: Path, steps: list[int], shift: float = 0.0) -> None:
    folder.mkdir(parents=True)
    rows = [f",{7 - math.log10(1 + step) + shift},{step}" for step in steps]
    (folder / "metrics.csv").write_text("\n".join(["geometry/rankme,loss,step", "3.5,,1", *rows]) + "\n")


class Page(HTMLParser):
    """A page as another parser sees it: its tags, attributes and text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self._within: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._within and self._within[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    def cells(self, title: str) -> list[list[str]]:
        """Rows of the table under this heading."""
        raw = "".join(self.words).partition(title)[2]
        return [row.split("\n") for row in re.split(r"\n{2,}", raw)]


def drawn_text(svg: Path) -> list[str]:
    """What a figure says: matplotlib writes each text as paths, and the text itself in a comment before them."""
    return [
        html.unescape(text.strip())
        for text in re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), re.DOTALL)
    ]


def test_what_stands_beside_a_record_file_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a", numbers={"memorisation/rho": 0.1})
    write_run(tmp_path / "a", numbers={"memorisation/rho": 0.2}, name="geometry-2.jsonl")
    first, last, folder = read_runs([tmp_path / "a/geometry.jsonl", tmp_path / "a/geometry-2.jsonl", tmp_path / "a"])
    assert [run.file.name for run in (first, last, folder)] == [
        "geometry.jsonl",
        "geometry-2.jsonl",
        "geometry-2.jsonl",
    ]
    assert [run.name for run in (first, last)] != ["a", "a"]
    assert [run.number("memorisation/rho")[0].value for run in (first, last)] == pytest.approx([0.1, 0.2])
    assert [phase.name for phase in first.phases] == ["warm-up", "entropy-seeking", "compression-seeking"]


def test_intervals_belong_to_their_number(tmp_path: Path) -> None:
    numbers = {"cloze/accuracy": 0.5, "cloze/low": 0.4, "cloze/high": 0.6, "cloze/n": 9.0, "cloze/margin": 2.0,
               "rollouts/distinct_n": 3.0, "intervention/full": 0.7, "intervention/full_low": 0.6,
               "intervention/full_high": 0.8}  # fmt: skip
    run = read_runs([write_run(tmp_path / "a", numbers=numbers)])[0]
    assert run.keys == ["cloze/accuracy", "cloze/margin", "rollouts/distinct_n", "intervention/full"]
    for key, low, high in (("cloze/accuracy", 0.4, 0.6), ("intervention/full", 0.6, 0.8), ("cloze/margin", None, None)):
        point = run.number(key)[0]
        assert (point.low, point.high) == (pytest.approx(low), pytest.approx(high))


def test_loss_of_a_resumed_recipe_run_stands_at_its_update_once(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    write_loss(tmp_path / "a/loss/from_0", [0, 10, 20])
    write_loss(tmp_path / "a/loss/from_9", [9, 19], shift=1.0)  # its own number sorts behind 15 as text
    write_loss(tmp_path / "a/loss/from_15", [15, 25], shift=2.0)
    expected = [(1, 0, 0), (10, 9, 1), (16, 15, 2), (26, 25, 2)]
    assert find_loss(file) == [(at, pytest.approx(7 - math.log10(1 + step) + shift)) for at, step, shift in expected]


def test_loss_of_the_trainer_is_that_of_the_latest_checkpoint_and_not_of_an_earlier_run(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    assert find_loss(file) == []
    for step in (9, 10):
        folder = tmp_path / f"a/checkpoint-{step}"
        folder.mkdir()
        history = [{"step": 5, "loss": 3.0}, {"step": 6, "eval_loss": 9.0}, {"step": step, "loss": 2.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert find_loss(file) == [(5, 3.0), (10, 2.0)]
    later = write_run(tmp_path / "a", name="geometry-2.jsonl")
    assert find_loss(file) == []
    assert find_loss(later) == [(5, 3.0), (10, 2.0)]


def test_what_is_no_run_and_no_loss_is_refused(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    (tmp_path / "empty.jsonl").write_text('{"kind": "header", "schema": 1}\n')
    (tmp_path / "loss.csv").write_text("a,b\n1,2\n")
    for paths, losses, message in (
        ([tmp_path / "none.jsonl"], [], "none.jsonl does not exist"),
        ([tmp_path], [], "holds no geometry.jsonl"),
        ([tmp_path / "empty.jsonl"], [], "no value of rankme"),
        ([tmp_path / "loss.csv"], [], "loss.csv, line 1, is not a record"),
        ([file], [tmp_path / "loss.csv"], "gives no training loss"),
        ([file], [tmp_path / "x.csv", tmp_path / "y.csv"], "2 times for 1 runs"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            read_runs(paths, losses)
    with pytest.raises(ValueError, match="kind='gif'"):
        write_report([file], tmp_path / "out", kind="gif")
    (tmp_path / "loss.jsonl").write_text('{"step": 3, "loss": 1.5}\n{"step": 4}\n')
    assert read_loss(tmp_path / "loss.jsonl") == [(3, 1.5)]


def test_labels_that_would_meet_are_moved_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = rng.integers(1, 6)
        widths = rng.uniform(0.02, 0.9 / count, count)
        places = np.array(spread(np.sort(rng.uniform(0, 1, count)).tolist(), widths.tolist()))
        assert (places - widths / 2 > -1e-9).all()
        assert (places + widths / 2 < 1 + 1e-9).all()
        assert (np.diff(places) > (widths[:-1] + widths[1:]) / 2 - 1e-9).all()
    assert spread([0.2, 0.7], [0.2, 0.2]) == [0.2, 0.7]


def test_the_analysis_shows_what_there_is_and_names_the_boundaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks, annotate = [], matplotlib.axes.Axes.annotate  # outlined text leaves no comment in an SVG
    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", lambda *a, **k: marks.append(a[1:3]) or annotate(*a, **k))
    numbers = {"memorisation/rho": 0.1, "memorisation/low": 0.05, "memorisation/high": 0.2, "cloze_near/accuracy": 0.2}
    run = read_runs([write_run(tmp_path / "a", numbers=numbers)])[0]
    plot_analysis(run, tmp_path / "a.svg")
    said = drawn_text(tmp_path / "a.svg")
    assert {"warm-up", "entropy-seeking", "compression-seeking", "RankMe", "α, ranks 4–24", "cloze near"} <= set(said)
    assert "training loss" not in said
    top = STEPS[::2][-1]
    for step, text in (
        (32, f"{rankme(32):.3g} at 32 ("),
        (1000, f"{rankme(1000):.3g} at 1,000 ("),
        (top, f"highest {0.1 * math.log10(10 + top):.3f}, update {top:,}"),
    ):
        assert [at for found, at in marks if found.startswith(text)] == [
            (step, pytest.approx(rankme(step) if step < top else 0.1 * math.log10(10 + top)))
        ]
    assert "optimiser updates, of 512 tokens each" in said
    with pytest.raises(ValueError, match="data is empty"):
        plot_analysis([], tmp_path / "b.svg")


def test_every_figure_is_drawn_for_what_was_measured_and_for_nothing_else(tmp_path: Path) -> None:
    numbers = {f"primacy/band_{k}": 1.0 * k for k in range(1, 4)} | {"held_out/loss": 3.0, "intervention/full": 0.8}
    full = write_run(tmp_path / "full", probes=["probe", "short"], layers=["layer10", "layer9"], numbers=numbers)
    write_loss(tmp_path / "full/loss/from_0", list(range(0, 2000, 10)))
    runs, figures, page = write_report([full], kind="svg")
    assert page == tmp_path / "full/report/index.html"
    assert [figure.file.stem for figure in figures] == [
        "analysis", "layers", "spectra", "probes", "primacy", "intervention", "behaviour",
    ]  # fmt: skip
    assert runs[0].layers == ["layer9", "layer10"]
    said = {figure.file.stem: drawn_text(figure.file) for figure in figures}
    assert {"layer9", "layer10", "phases", "RankMe", "α"} <= set(said["layers"])
    assert any(text.startswith("trough, update 32: RankMe") for text in said["spectra"])
    assert {"probe, n = 2,048", "short, n = 2,048"} <= set(said["probes"])
    assert {"1 (most frequent)", "2", "3 (rarest)"} <= set(said["primacy"])
    assert "training loss" in said["analysis"]

    bare = write_run(tmp_path / "bare")
    _, figures, page = write_report([bare, full], tmp_path / "both", page=False)
    assert page is None
    assert not (tmp_path / "both/index.html").exists()
    assert {"analysis.png", "spectra-bare.png", "spectra-full.png", "primacy-full.png"} < {f.file.name for f in figures}
    assert not (tmp_path / "both/primacy-bare.png").exists()
    image = matplotlib.image.imread(tmp_path / "both/analysis.png")
    assert min(image.shape[:2]) > 800


def test_a_curve_without_phases_or_with_one_point_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "geometry.jsonl"
    full = write_run(tmp_path / "full").read_text().splitlines()
    file.write_text("\n".join(full[:2]) + "\n")
    runs, _, page = write_report([file])
    assert runs[0].phases == []
    assert page is not None
    assert "no phase stands out" in Page(page).text


def test_the_table_has_the_rank_correlations_of_scipy(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a", numbers={"held_out/loss": -1.0})
    _, _, page = write_report([file])
    shared = STEPS[::2]
    behaviour = [-math.log10(10 + step) for step in shared]
    rho = scipy.stats.spearmanr([rankme(step) for step in shared], behaviour).statistic
    assert page is not None
    row = next(cells for cells in Page(page).cells("Behaviour beside") if "held_out/loss" in cells)
    assert row[row.index("held_out/loss") + 1] == str(len(shared))
    assert f"{rho:.2f}".replace("-", "−") in row
    assert f"{-rho:.2f}".replace("-", "−") in row  # α = 20 / RankMe


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs whose every text is an attack, with SVG figures."""
    folder = tmp_path_factory.mktemp("hostile")
    header = {"settings": {text: {text: text} for text in NASTY}, "probes": {HOSTILE: {"fingerprint": NASTY[1]}}}
    keys = {f"{text}/{text}": 1.0 for text in NASTY} | {f"{HOSTILE}/accuracy": 0.2, f"intervention/{NASTY[2]}": 0.4}
    keys |= {"primacy/band_$": 1.0, "intervention/full": 0.4, "intervention/keep_top_10": 0.3}
    names = ["<img src=x onerror=alert(3)>", "run $x_{ $"]
    files = [write_run(folder / n, probes=NASTY[:3], layers=NASTY[:4], numbers=keys, header=header) for n in names]
    _, figures, page = write_report(files, folder / "out", kind="svg", title=f"{HOSTILE} $ {{{{ 7 * 7 }}}}")
    assert len(figures) == 1 + 4 * 2 + 2
    assert page is not None
    return page


def test_text_of_a_run_is_escaped_and_nothing_is_asked_for(hostile: Path) -> None:
    page = Page(hostile)
    known = "html head meta link title style body main header h1 h2 p strong figure img figcaption section div table"
    assert {tag for tag, _ in page.tags} <= {
        *known.split(),
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "span",
        "footer",
        "sup",
    }
    assert not [name for _, found in page.tags for name in found if name.startswith("on") or name == "style"]
    asked = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "srcset")]
    assert len(asked) == 12
    assert all(value is not None and value.startswith("data:") for value in asked)
    for text in NASTY[:6]:
        assert text in page.text
    assert f"{HOSTILE} $ {{{{ 7 * 7 }}}}" in page.text
    assert "\x1b" not in hostile.read_text(encoding="utf-8")


def test_the_policy_allows_the_page_s_own_style_and_data_images_alone(hostile: Path) -> None:
    page = Page(hostile)
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    allowed = {"default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'", "base-uri 'none'"}
    assert set((policy or "").split("; ")) == allowed | {"form-action 'none'"}
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_hostile_text_in_figures_is_drawn_as_it_stands(hostile: Path) -> None:
    figures = sorted(hostile.parent.glob("*.svg"))
    assert figures
    for file in figures:
        tree = ElementTree.parse(file)
        names = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert not names & {"script", "foreignObject", "a", "iframe", "set", "animate"}
        for element in tree.iter():
            for name, value in element.attrib.items():
                assert not name.rpartition("}")[2].startswith("on")
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))
    said = "\n".join(text for file in figures for text in drawn_text(file))
    for text in (HOSTILE, "$x_{", r"$\frac{$ a$", "名前 α"):
        assert text in said
    assert plain("a\nb\x00$", 3) == "a …"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BINARY is None:
        pytest.skip("no Chromium here")
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_opens_the_page_without_errors_or_requests(hostile: Path, browser: Browser, width: int) -> None:
    seen = browser.visit(hostile, width)
    assert seen.messages == []
    assert seen.dialogs == []
    assert set(seen.requests) == {hostile.as_uri(), "data:"}
    assert seen.width <= width
    assert len(seen.images) == 11
    assert all(seen.images)
    assert HOSTILE in seen.text
    assert "Behaviour beside the geometry" in seen.text


def test_the_browser_would_have_seen_an_error_a_request_and_a_page_too_wide(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><div style="width: 900px">x</div>'
        '<img src="http://127.0.0.1:9/x.png"><script>alert(1); throw new Error("broken")</script>'
    )
    seen = browser.visit(page, 390)
    assert seen.width >= 900
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert seen.dialogs == ["1"]
    assert seen.messages
    assert seen.images == [False]


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", numbers={"memorisation/rho": 0.1})
    assert (
        main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "o"), "--format", "svg", "--title", "Mine"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "a: 20 measurements, no training loss found, 1 numbers of behaviour; "
        "warm-up → entropy-seeking → compression-seeking",
        f"figures   {tmp_path / 'o'}/: analysis.svg, spectra.svg",
        f"page      {tmp_path / 'o/index.html'}",
    ]
    assert "<title>Mine</title>" in (tmp_path / "o/index.html").read_text()
    assert main(["report", str(tmp_path / "b")]) == 2
    assert f"{tmp_path / 'b'} does not exist" in capsys.readouterr().err


def test_nothing_heavy_is_imported_early_and_what_is_missing_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    code = """
import sys, geomcallbacks.report
from geomcallbacks.cli import main
print({"matplotlib", "jinja2", "pandas"} & set(sys.modules))
for name in ("matplotlib", "jinja2"):
    sys.modules[name] = None  # as if it were not installed
    print(main(["report", sys.argv[1]]))
    del sys.modules[name]
"""
    command = [sys.executable, "-c", code, str(file)]
    done = run_process(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.stdout.split("\n") == ["set()", "2", "2", ""]
    remedy = "pip install 'geomcallbacks[report]'"
    said = [f"geomcallbacks report: a report needs {name}: {remedy}" for name in ("matplotlib", "jinja2")]
    assert done.stderr.splitlines() == said
