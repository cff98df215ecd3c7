"""A headless Chromium, spoken to over a pipe: pages at any width, light and dark, with all they log and request."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
AXE = os.environ.get("AXE_CORE")  # path of axe.min.js, from the npm package axe-core

# The browser reads commands from descriptor 3 and writes to 4.
_START = """
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One process with one tab. ``messages`` holds what pages logged, ``requests`` what they asked for."""

    def __init__(self, profile: Path):
        to_child, from_us = os.pipe()
        from_child, to_us = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        words = [PROGRAM, *options, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(to_child), str(to_us), *words],
            pass_fds=(to_child, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(to_us)
        self._write, self._read, self._rest, self._count = from_us, from_child, b"", 0
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._session = ""
        (tab,) = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, path: Path, width: int, height: int, *, dark: bool = False, media: str = "screen") -> None:
        """Show a page and wait until it is loaded."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression, or of the promise that it is."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End the process that this object has started."""
        os.close(self._write)
        self._process.terminate()
        self._process.wait(10)
        os.close(self._read)

    def _next(self, patience: float = 60.0) -> dict[str, Any]:
        ends = time.monotonic() + patience
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise TimeoutError("the browser did not answer")
            if not (part := os.read(self._read, 1 << 20)):
                raise RuntimeError("the browser has ended")
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        event, params = message.get("method"), message.get("params", {})
        if event == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.messages.append(str(params["args"]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(params["exceptionDetails"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


# What is cut off: text that is wider than the window and can be reached by no scrolling region.
CLIPPED = """
[...document.querySelectorAll('main *, header *')].filter(e => {
  if (!e.checkVisibility || !e.checkVisibility() || e.closest('svg') && e.tagName !== 'svg') return false;
  const box = e.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 1 && !e.closest('.scroll, pre');
}).map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 60))
"""
# Regions that scroll and that a keyboard cannot reach.
UNREACHABLE = """
[...document.querySelectorAll('.scroll, pre')].filter(
  e => e.checkVisibility() && e.tabIndex < 0
    && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
).map(e => e.textContent.trim().slice(0, 60))
"""


def axe_findings(browser: Browser) -> list[str]:
    """Serious and critical findings of axe-core on the page that is open."""
    browser.run(Path(AXE).read_text() + ";0")
    script = "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)"
    return [
        f"{found['id']}: {found['help']}: {node['html'][:150]}"
        for found in browser.run(script)
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
