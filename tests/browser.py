"""A headless Chromium that opens a page and tells what it did: requests, messages, sizes. Standard library alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
_LIMIT = 300  # seconds of the browser's life, on a machine that does much else
_COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Audits.issueAdded")
#: Two frames later: images and late loads have had their turn.
_SEEN = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => ({
    width: document.documentElement.scrollWidth,
    images: [...document.images].map(image => image.complete && image.naturalWidth > 0),
    text: document.body.innerText }))"""


class Browser:
    """Chromium, spoken to over a pair of pipes (DevTools protocol). A script that opens a dialog makes it time out."""

    def __init__(self, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = f'"{BINARY}" {_FLAGS} --user-data-dir="{folder}" about:blank 3<&{theirs_in} 4>&{theirs_out}'
        limited = ["timeout", str(_LIMIT), "bash", "-c", f"exec {command}"]
        self._process = subprocess.Popen(limited, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number = b"", 0
        self._events: list[dict[str, Any]] = []

    def close(self) -> None:
        self._ask("Browser.close")
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def visit(self, page: Path, width: int) -> SimpleNamespace:
        """Open a file in a new tab of this width.

        Returns:
            `requests`: addresses that were asked for; of data: ones without the data. `messages`: errors and warnings
            of the console, exceptions, and violations of the page's policy. `width` of the content: wider than the
            window means scrolling sideways. `images`: whether each was decoded. `text`: what the page shows.
        """
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Audits"):
            self._ask(f"{domain}.enable", session)
        window = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self._ask("Emulation.setDeviceMetricsOverride", session, **window)
        self._events.clear()
        self._ask("Page.navigate", session, url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        seen = self._ask("Runtime.evaluate", session, expression=_SEEN, awaitPromise=True, returnByValue=True)
        asked = [event["params"] for event in self._events if event["method"] == "Network.requestWillBeSent"]
        requests = [params["request"]["url"].partition("base64,")[0] for params in asked]
        messages = [str(event["params"])[:1000] for event in self._events if event["method"] in _COMPLAINTS]
        self._ask("Target.closeTarget", targetId=target)
        return SimpleNamespace(requests=requests, messages=messages, **seen["result"]["value"])

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != self._number:
            pass
        assert "error" not in found, found
        return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has ended, or did not answer in time"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message
