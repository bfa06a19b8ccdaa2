"""A headless Chromium, driven through the pipe of its own DevTools protocol: pages are opened, looked at, typed into.

    with browser.opened(tmp_path) as page:
        page.open("http://127.0.0.1:8765/")
        page.until("document.querySelectorAll('tr').length > 3")
        page.key("j"); page.shot(tmp_path / "page.png")
        assert page.complaints == []
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KEYS = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowDown": 40, "ArrowLeft": 37, "ArrowUp": 38}


class Page:
    def __init__(self, process: subprocess.Popen[bytes], to: int, fro: int) -> None:
        self.process, self.to, self.fro = process, to, fro
        self.rest, self.number, self.session = b"", 0, ""
        self.complaints: list[str] = []
        """What the console said of errors and warnings, and of what the policy forbade."""
        self.asked: list[str] = []
        """Addresses of all requests."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        said: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            said["sessionId"] = self.session
        os.write(self.to, json.dumps(said).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            heard = self._hear(deadline)
            if heard.get("id") == self.number:
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]

    def _hear(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.fro], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser did not answer in time"
            piece = os.read(self.fro, 1 << 20)
            assert piece, "the browser has ended"
            self.rest += piece
        first, self.rest = self.rest.split(b"\0", 1)
        heard = json.loads(first)
        what, more = heard.get("method", ""), heard.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(more["exceptionDetails"])[:1500])
        elif what == "Runtime.consoleAPICalled" and more["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(more["args"])[:1000])
        elif what == "Log.entryAdded" and more["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{more['entry']['text']} {more['entry'].get('url', '')}")
        elif what == "Network.requestWillBeSent":
            self.asked.append(more["request"]["url"])
        return heard

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def tell(self, script: str) -> Any:
        """The value of an expression; of a promise what it comes to."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found)
        return found["result"].get("value")

    def until(self, script: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not self.tell(f"!!({script})"):
            assert time.monotonic() < deadline, f"not so in {timeout} s: {script}\n{self.text()[:3000]}"
            time.sleep(0.05)

    def text(self) -> str:
        return self.tell("document.body.innerText")

    def key(self, *keys: str) -> None:
        for key in keys:
            said = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
            typed = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **said, **typed)
            self.call("Input.dispatchKeyEvent", type="keyUp", **said)

    def click(self, selector: str) -> None:
        self.tell(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.tell(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector("
                        f"{json.dumps(selector)}).getBoundingClientRect())")  # fmt: skip
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def size(self, width: int, height: int, phone: bool = False, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
                  mobile=phone)  # fmt: skip
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])  # fmt: skip

    def shot(self, to: Path) -> None:
        to.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """One page of a browser of its own, 1440x900. Skips the test where no browser is installed, but with CI=true."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        assert os.environ.get("CI") != "true", "chromium is not installed"
        pytest.skip("chromium is not installed")
    here_to, its_in = os.pipe()[::-1]
    here_from, its_out = os.pipe()

    def pipes() -> None:  # it reads 3 and writes 4
        ins, outs = os.dup(its_in), os.dup(its_out)
        os.dup2(ins, 3)
        os.dup2(outs, 4)
        os.set_inheritable(3, True)
        os.set_inheritable(4, True)

    process = subprocess.Popen(
        [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank"],
        close_fds=False, preexec_fn=pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_in)
    os.close(its_out)
    try:
        page = Page(process, here_to, here_from)
        page.size(1440, 900)
        yield page
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)
        os.close(here_to)
        os.close(here_from)
