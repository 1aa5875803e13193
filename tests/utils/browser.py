"""Chromium without a window, over the DevTools protocol on two pipes: what a test of the page needs, and no more.

with browser(tmp_path / "profile") as tab:
    tab.open("file:///...")
    tab.js("document.title")          the value of an expression, awaited if it is a promise
    tab.errors, tab.requests          what the console complained of; every address that was asked for
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --mute-audio "
    "--disable-component-update --disable-sync --disable-extensions --hide-scrollbars --remote-debugging-pipe"
)
PATIENCE_S = 30.0


class Tab:
    """One page. Everything the browser tells of it is kept in `events`."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""
        self.calls = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while (answer := self._receive(until)).get("id") != message["id"]:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.received:
            ready, _, _ = select([self.reader], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self.reader, 1 << 20)
            assert read, "the browser has gone"
            self.received += read
        text, _, self.received = self.received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, address: str, ready: str = "document.documentElement?.dataset.ready === 'yes'") -> None:
        """Go there, and wait until the expression holds; what was told of the page before is forgotten."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait(ready)

    def js(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE_S) -> None:
        self.until(lambda: bool(self.js(expression)), expression, seconds)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"never came true: {what}"
            time.sleep(0.02)
            self.call("Target.getTargetInfo")  # a call, so that what the browser tells meanwhile is read

    def key(self, key: str) -> None:
        code = {"Enter": 13, "Escape": 27, "Tab": 9}.get(key, 0)
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def mouse(self, kind: str, x: float, y: float, clicks: int = 0) -> None:
        button = "none" if kind == "mouseMoved" and not clicks else "left"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind, x=x, y=y, button=button, buttons=int(button == "left"), clickCount=clicks,
        )  # fmt: skip

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of what is in view, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    @property
    def errors(self) -> list[str]:
        """Exceptions, errors and warnings of the console, and what the policy refused."""
        found = []
        for event in self.events:
            of = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                details = of["exceptionDetails"]
                found.append(str(details.get("exception", {}).get("description") or details["text"]))
            elif event["method"] == "Log.entryAdded" and of["entry"]["level"] in ("error", "warning"):
                found.append(of["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and of["type"] in ("error", "warning", "assert"):
                found.append(str(of["args"]))
        return found

    @property
    def requests(self) -> list[str]:
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with one empty tab; it ends with the block."""
    assert CHROMIUM is not None
    (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (theirs_in, theirs_out):
        os.close(end)
    tab = Tab(ours_in, ours_out)
    try:
        target = next(one for one in tab.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
        tab.session = None
        tab.call("Browser.close")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()
        for end in (ours_in, ours_out):
            os.close(end)
