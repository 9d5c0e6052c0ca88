"""A real browser, driven by the W3C's WebDriver protocol: headless Chromium, where it and its driver are installed."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NO_DRIVER = "no Chromium with its driver here, so the desk was NOT used in a browser. Debian: chromium-driver"


class WebDriver:
    """One window of a browser with a profile of its own."""

    def __init__(self, server: str, *, dark: bool) -> None:
        self.server = server
        arguments = ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        arguments.append(f"--blink-settings=preferredColorScheme={0 if dark else 1}")
        options = {"args": arguments, "binary": CHROMIUM}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"
        self._ask("POST", "/timeouts", {"implicit": 20_000})  # a form's page comes a moment after the click

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def width(self, pixels: int) -> None:
        metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})

    def evaluate(self, script: str) -> Any:
        """Return what a script finds; it runs beside the page's own policy, which forbids all scripts."""
        return self._ask("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def click(self, css: str) -> None:
        self._ask("POST", f"/element/{self._find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        self._ask("POST", f"/element/{self._find(css)}/value", {"text": text})

    def text(self, css: str) -> str:
        return str(self._ask("GET", f"/element/{self._find(css)}/text"))

    def wait_for(self, css: str, words: str) -> None:
        """Wait until an element, of this page or the next, begins with `words`."""
        deadline = time.monotonic() + 60
        while not str(self.evaluate(f"(document.querySelector({css!r}) || document.body).textContent")).startswith(
            words
        ):
            assert time.monotonic() < deadline, self.text("body")
            time.sleep(0.1)

    def complaints(self) -> list[str]:
        """Return what the browser's console says since it was last asked, such as a breach of a page's policy."""
        return [line["message"] for line in self._ask("POST", "/se/log", {"type": "browser"})]

    def _find(self, css: str) -> str:
        found = self._ask("POST", "/element", {"using": "css selector", "value": css})
        return str(next(iter(found.values())))

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        return self._call(method, self.session + path, content)

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = Request(self.server + path, body, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=120) as reply:
            return json.load(reply)["value"]

    def quit(self) -> None:
        self._ask("DELETE", "")


@contextmanager
def window(*, dark: bool = False) -> Iterator[WebDriver]:
    """Open a browser for as long as the block runs."""
    assert DRIVER
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        try:
            server, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while True:
                try:
                    urlopen(f"{server}/status", timeout=5).close()
                    break
                except URLError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            browser = WebDriver(server, dark=dark)
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            driver.terminate()
