"""The page of a report: its tables, hostile text on it; and the command that writes it."""

from __future__ import annotations

import base64
import hashlib
import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import scipy.stats
from run_folders import STEPS, Page, rankme, write_loss, write_run

from geomcallbacks.cli import main
from geomcallbacks.report import write_report
from geomcallbacks.report.style import plain

HOSTILE = "<script>alert(1)</script>"
NASTY = [HOSTILE, '"><img src=x onerror=alert(2)>', "$x_{", r"$\frac{$ a$", "--><b>", "名前 α\u202e", "\x1b[31m&amp;'"]
#: Every tag that the page may have, whatever its texts are.
TAGS = """html head meta link title style body main header h1 h2 p strong figure img figcaption section div table
    thead tbody tr th td span footer sup"""


def test_the_tables_tell_of_the_boundaries_and_have_the_rank_correlations_of_scipy(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a", numbers={"held_out/loss": -1.0})
    write_loss(tmp_path / "a/loss/from_0", [0, *range(29, 32), 999])
    _, _, page = write_report([file])
    summary = {row[0]: row[1:] for row in Page(page).cells("Summary")[:6]}
    assert summary["end of warm-up"][:2] == ["32", f"{rankme(32):.4g}"]
    assert float(summary["end of warm-up"][-1]) == pytest.approx(7 - math.log10(31), abs=0.006)
    assert summary["end of entropy-seeking"][1:3] == [f"{rankme(1000):.4g}", f"{20 / rankme(1000):.3f}"]
    assert summary["end"][-1] == "–"  # no loss was logged close before
    shared = STEPS[::2]
    rho = scipy.stats.spearmanr([rankme(step) for step in shared], [-step for step in shared]).statistic
    row = next(row for row in Page(page).cells("Behaviour beside") if row[0] == "held_out/loss")
    expected = [f"{value:.2f}".replace("-", "−") for value in (rho, -rho)]  # α = 20 / RankMe
    assert (row[1], row[-2:]) == (str(len(shared)), expected)


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
    return page


def test_text_is_escaped_and_the_policy_allows_nothing_but_the_page_s_own(hostile: Path) -> None:
    page = Page(hostile)
    assert {tag for tag, _ in page.tags} <= set(TAGS.split())
    attributes = [(name, value or "") for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    asked = [value for name, value in attributes if name in ("src", "href", "srcset")]
    assert [value.partition(":")[0] for value in asked] == ["data"] * 12
    for text in (*NASTY[:6], f"{HOSTILE} $ {{{{ 7 * 7 }}}}"):
        assert text in page.text
    assert "\x1b" not in hostile.read_text(encoding="utf-8")
    policy = next(found["content"] for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert set((policy or "").split("; ")) == {
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'",
    }  # fmt: skip
    assert not [word for word in ("url(", "@import") if word in page.style]


def test_hostile_text_in_figures_is_drawn_as_it_stands(hostile: Path) -> None:
    said = ""
    for file in sorted(hostile.parent.glob("*.svg")):
        said += file.read_text(encoding="utf-8").replace("&lt;", "<").replace("&gt;", ">")
        elements = list(ElementTree.parse(file).iter())
        assert not {e.tag.rpartition("}")[2] for e in elements} & {"script", "foreignObject", "a", "iframe", "animate"}
        for name, value in (pair for element in elements for pair in element.attrib.items()):
            assert not name.rpartition("}")[2].startswith("on")
            assert not name.endswith("href") or value.startswith(("#", "data:image/png;base64,"))
    for text in (HOSTILE, "$x_{", r"$\frac{$ a$", "名前 α"):
        assert f"<!-- {text}" in said
    assert plain("a\nb\x00$", 3) == "a …"


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "a", numbers={"memorisation/rho": 0.1}).parent, tmp_path / "o"
    assert main(["report", str(run), "--out", str(out), "--format", "svg", "--title", "Mine"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a: 20 measurements, no training loss found, 1 numbers of behaviour; "
        "warm-up → entropy-seeking → compression-seeking",
        f"figures   {out}/: analysis.svg, spectra.svg",
        f"page      {out / 'index.html'}",
    ]
    assert "<title>Mine</title>" in (out / "index.html").read_text()


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_what_is_not_installed_is_named_with_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert main(["report", str(write_run(tmp_path / "a"))]) == 2
    assert f"a report needs {name}: pip install 'geomcallbacks[report]'" in capsys.readouterr().err
