"""A headless Chromium that opens a page and tells what it did: requests, messages, sizes. Standard library alone."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_LIMIT = 60.0  # seconds for an answer, on a machine that does much else


@dataclass
class Visit:
    """What happened while a page was opened at one width.

    Attributes:
        requests: addresses that were asked for, data: ones cut to that word.
        messages: errors and warnings of the console, exceptions, and violations of the page's policy.
        width: of the content; wider than the window means scrolling sideways.
        images: whether each image was decoded.
        text: what the page shows.
        dialogs: what scripts put up in front of it.
    """

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    width: int = 0
    images: list[bool] = field(default_factory=list)
    text: str = ""
    dialogs: list[str] = field(default_factory=list)


class Browser:
    """Chromium, spoken to over a pair of pipes (DevTools protocol)."""

    def __init__(self, folder: Path) -> None:
        assert BINARY is not None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        )
        command = f'exec "{BINARY}" {flags} --user-data-dir="{folder}" about:blank 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._rest, self._number = ours_in, ours_out, b"", 0
        self._events: list[dict[str, Any]] = []

    def close(self) -> None:
        self.ask("Browser.close")
        self._process.wait(_LIMIT)
        os.close(self._in)
        os.close(self._out)

    def visit(self, page: Path, width: int, height: int = 900) -> Visit:
        """Opens a file in a new tab of this width."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Audits"):
            self.ask(f"{domain}.enable", session)
        mobile = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setDeviceMetricsOverride", session, **mobile)
        self._events.clear()
        self.ask("Page.navigate", session, url=page.as_uri())
        end = time.monotonic() + _LIMIT
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read(end)
        seen = Visit(width=self._value(session, "document.documentElement.scrollWidth"))
        seen.images = self._value(session, "[...document.images].map(i => i.complete && i.naturalWidth > 0)")
        seen.text = self._value(session, "document.body.innerText")
        for event in self._events:
            _note(seen, event["method"], event["params"])
        self.ask("Target.closeTarget", targetId=target)
        return seen

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _LIMIT
        while True:
            found = self._read(end)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _value(self, session: str, expression: str) -> Any:
        # Two frames later: images and late loads have had their turn.
        later = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        wrapped = f"{later}.then(() => {expression})"
        found = self.ask("Runtime.evaluate", session, expression=wrapped, awaitPromise=True, returnByValue=True)
        return found["result"]["value"]

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0], "the browser does not answer"
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
            if message["method"] == "Page.javascriptDialogOpening":  # answered, or nothing goes on
                self._number += 1
                reply = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self._out, json.dumps(reply | {"sessionId": message["sessionId"]}).encode() + b"\0")
                return self._read(end)
        return message


def _note(seen: Visit, method: str, params: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        url = params["request"]["url"]
        seen.requests.append("data:" if url.startswith("data:") else url)
    elif method == "Log.entryAdded":
        seen.messages.append(params["entry"]["text"])
    elif method == "Runtime.exceptionThrown":
        seen.messages.append(params["exceptionDetails"]["text"])
    elif method == "Runtime.consoleAPICalled":
        seen.messages.append(str(params["args"]))
    elif method == "Audits.issueAdded":
        seen.messages.append(params["issue"]["code"])
    elif method == "Page.javascriptDialogOpening":
        seen.dialogs.append(params["message"])
