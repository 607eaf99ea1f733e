"""Headless Chromium, driven over a pair of pipes by its DevTools protocol.

    with Browser(folder) as browser:
        page = browser.open(url)
        page.run("document.title")

Messages are JSON, ended by a NUL: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
]
READS_FROM, WRITES_TO = 3, 4
"""File descriptors of the browser's ends of the pipes."""
SECONDS = 60.0
"""Longest time for an answer of the browser, or for a page to change."""


class Browser:
    """A browser process with an empty profile in `folder`."""

    def __init__(self, folder: Path):
        commands_out, self._commands = _high_pipe()
        self._messages, messages_in = _high_pipe()
        self._buffer = b""
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        """Events so far, of all pages."""
        self._pid = os.posix_spawn(
            PROGRAM,
            [PROGRAM, *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, commands_out, READS_FROM),
                (os.POSIX_SPAWN_DUP2, messages_in, WRITES_TO),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),  # complaints about services that it does not need
            ],
            setpgroup=0,
        )
        os.close(commands_out)
        os.close(messages_in)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._commands)
        os.close(self._messages)

    def open(self, url: str, *, width: int = 1280, height: int = 900) -> "Page":
        """Opens a page in a tab of its own."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.call("Page.navigate", {"url": url})
        return page

    def call(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params or {}}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._messages], [], [], SECONDS)
            assert readable, f"no answer from the browser after {SECONDS} s"
            data = os.read(self._messages, 2**20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, target: str):
        self._browser, self._session, self._target = browser, session, target

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def run(self, script: str) -> Any:
        """Returns the value of an expression, or of its promise."""
        result = self.call("Runtime.evaluate", {"expression": script, "awaitPromise": True, "returnByValue": True})
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits until an expression is true; one that fails, as while the page is loaded, is not."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"(() => {{ try {{ return !!({condition}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < deadline, f"not true after {SECONDS} s: {condition}; {self.text('body')}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Returns the text that is shown."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def fill(self, selector: str, value: str | int) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(str(value))}")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses a key where the focus is; `code` is its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
            self.call("Input.dispatchKeyEvent", event)

    def upload(self, selector: str, path: Path) -> None:
        """Chooses a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
        self.call("DOM.setFileInputFiles", {"nodeId": node, "files": [str(path)]})

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", metrics)

    def prefer_colors(self, scheme: str) -> None:
        """Asks for light or dark pages, as a user's settings do."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", {"features": features})

    def screenshot(self, path: Path) -> None:
        """Writes a PNG file of the whole page."""
        data = self.call("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def events(self, method: str) -> list[dict[str, Any]]:
        """Returns what the tab has reported so far under a method's name."""
        self.run("0")  # what was reported before is received with it
        return [
            event["params"]
            for event in self._browser.events
            if event["method"] == method and event.get("sessionId") == self._session
        ]


def _high_pipe() -> tuple[int, int]:
    """Returns a pipe whose descriptors are none of those that the browser reads from or writes to."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
