"""Reporting never ends a run: whatever the filters, streams and handlers are, and never is a failure without a word."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from geomcallbacks.running.messages import reason_of, show, tell

ROOT = Path(__file__).parents[2]


GIVEN = """
import warnings
from geomcallbacks.running.messages import WarnOnce
warnings.simplefilter({action!r})
before, warn = list(warnings.filters), WarnOnce()
for _ in range(3):
    warn("key", "RankMe is lost")
assert warnings.filters == before
"""


@pytest.mark.parametrize("action", ["ignore", "error", "default"])
def test_a_warning_is_given_once_whatever_the_filters(action: str) -> None:
    command = [sys.executable, "-c", GIVEN.format(action=action)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ran.returncode, ran.stderr) == (0, "geomcallbacks:0: UserWarning: RankMe is lost\n")


def test_those_who_collect_warnings_are_given_it() -> None:
    with pytest.warns(UserWarning, match="RankMe is lost"):
        tell("RankMe is lost")


class Broken(io.TextIOBase):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError("injected")


@pytest.mark.parametrize("stream", [None, Broken(), "closed"], ids=["none", "broken pipe", "closed"])
def test_a_stream_that_fails_ends_nothing(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    show("a line")
    tell("a warning")


LATIN = "RankMe 3 ? 5, é"


@pytest.mark.parametrize(("encoding", "wanted"), [("ascii", "RankMe 3 ? 5, ?"), ("latin-1", LATIN), ("cp1252", LATIN)])
def test_characters_that_a_stream_lacks_are_replaced(
    encoding: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    show("RankMe 3 → 5, é")
    sys.stdout.flush()
    assert raw.getvalue().decode(encoding) == wanted + "\n"


def test_the_reason_of_an_error_is_one_line_without_what_acts_on_a_terminal() -> None:
    class Worse(RuntimeError):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert reason_of(OSError("a\n  b\x1b[2J")) == "OSError: a b\ufffd[2J"
    assert reason_of(RuntimeError("a\n  b \ud800")) == "RuntimeError: a b \ufffd"
    assert reason_of(Worse()) == "Worse"
