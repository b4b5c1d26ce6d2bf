"""A headless Chromium that is driven over a pair of pipes, with nothing but the standard library.

Chromium speaks its DevTools protocol on descriptors 3 (what it reads) and 4 (what it writes), a JSON object at a time,
each ended by a zero byte.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowDown": (40, ""), "ArrowUp": (38, ""), "Tab": (9, "")}


class Page:
    """One tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.session: str | None = None
        self.number = 0
        self.received = b""
        self.complaints: list[str] = []
        """What the page logged as an error or warning, refused loads included."""
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(
        self, file: Path | str, fragment: str = "", *, width: int = 1000, height: int = 900, dark: bool = False
    ) -> None:
        """Show a file or an address, and wait until it is loaded."""
        self.size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=(file if isinstance(file, str) else file.as_uri()) + fragment)
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """Return the value of an expression of JavaScript."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"!!({condition})"):
            assert time.monotonic() < end, f"still not so: {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a mouse does."""
        where = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f"return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        for kind in ("keyDown", "keyUp"):
            about = {"key": key, "windowsVirtualKeyCode": code, "text": text if kind == "keyDown" else ""}
            self.send("Input.dispatchKeyEvent", type=kind, **about)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, file: Path, *, whole: bool = False) -> Path:
        done = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(done["data"]))
        return file

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.from_browser], [], [], 60)
            assert ready, "Chromium has not answered for a minute"
            piece = os.read(self.from_browser, 1 << 16)
            assert piece, "Chromium has ended"
            self.received += piece
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event.get("method") == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(about))
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])


@contextmanager
def page() -> Iterator[Page]:
    """Start a browser, and end it."""
    assert PROGRAM is not None
    # Above 4, so that the browser's own two are not overwritten while they are put in place.
    commands, to_browser, from_browser, answers = (
        fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (*os.pipe(), *os.pipe())
    )

    def place() -> None:
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
        browser = subprocess.Popen(
            [PROGRAM, *options, "--no-first-run", f"--user-data-dir={profile}"],
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Page(to_browser, from_browser)
        finally:
            browser.kill()
            browser.wait()
            for descriptor in (commands, to_browser, from_browser, answers):
                os.close(descriptor)
