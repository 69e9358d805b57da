"""A real browser for the tests, driven through the DevTools protocol of Chromium.

The browser is Qt WebEngine, which pip installs with the "dev" extra, or the system's Chromium
where Qt WebEngine lacks a system library.
"""

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

PATIENCE = 60  # s, for a start or an answer on a loaded machine
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
MISSING_LIBRARY = "cannot open shared object file"
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
)
INSTALL = (
    'no browser: run "python3 install.py test", and on Debian or Ubuntu as root "apt-get install '
    "libnss3 libasound2 libxcomposite1 libxdamage1 libxrandr2 libxtst6 libxkbfile1 libgbm1 "
    'libegl1" for Qt WebEngine, or "apt-get install chromium"'
)


class NoBrowserError(Exception):
    """Neither Qt WebEngine nor Chromium is usable here; the text says what to install."""


class Page:
    """A page of a running browser. Positions are CSS pixels from the viewport's upper left."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Emulation.setScrollbarsHidden", hidden=True)  # they differ between browsers

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and returns its result.

        Raises:
            RuntimeError: the browser refuses the call.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=PATIENCE))
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression, which must be plain data.

        Raises:
            RuntimeError: the expression throws.
        """
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["result"].get("description", expression))
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Returns the value of an expression as soon as it is truthy.

        Raises:
            TimeoutError: it stays falsy.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.02)
        raise TimeoutError(expression)

    def open(
        self, path: Path, width: int, height: int, *, scheme: str = "light", media: str = "screen"
    ) -> None:
        """Shows a file in a viewport of the given size, and waits until it is loaded.

        Args:
            path: of an HTML file.
            width: of the viewport, CSS pixels; under 500 it is a telephone's, with touch.
            height: of the viewport, CSS pixels.
            scheme: "light" or "dark".
            media: "screen" or "print".
        """
        telephone = width < 500
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=telephone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=telephone)
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[preference])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait(f"location.href === {path.as_uri()!r} && document.readyState === 'complete'")

    def centre(self, selector: str, share: float = 0.5) -> tuple[float, float]:
        """Scrolls an element into view and returns a position in it.

        Args:
            selector: CSS selector of the element.
            share: 0 is its left edge, 1 its right edge.
        """
        x, y = self.evaluate(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{ block: "center", inline: "center", behavior: "instant" }});
            const box = element.getBoundingClientRect();
            return [box.left + {share} * box.width, box.top + box.height / 2];
        }})()""")
        return x, y

    def move(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Moves the mouse and clicks."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, x: float, y: float) -> None:
        """Touches and lets go."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        """Presses a key, by its name in `KeyboardEvent.key`."""
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        values = {"key": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **values, **down)
        self.call("Input.dispatchKeyEvent", **values, type="keyUp")

    def screenshot(self, path: Path) -> np.ndarray:
        """Writes a PNG of the whole page, to its end, and returns it as (H, W, 3) uint8 BGR."""
        answer = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            optimizeForSpeed=True,  # of the compression
        )
        path.write_bytes(base64.b64decode(answer["data"]))
        return cv2.imread(str(path))

    def complaints(self) -> list[str]:
        """Returns what stands in the console since `open`, and exceptions that nobody caught."""
        self.evaluate("0")  # what comes before its answer has been received
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def requests(self) -> list[str]:
        """Returns the addresses that the page asked for since `open`."""
        self.evaluate("0")
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Runs a browser with an empty profile.

    Args:
        folder: where it keeps its profile and its log.

    Raises:
        NoBrowserError: there is none.
        RuntimeError: there is one and it doesn't start.
    """
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("PySide6.QtWebEngineWidgets"):
            try:
                address = stack.enter_context(_webengine(folder))
            except NoBrowserError:
                address = stack.enter_context(_chromium(folder))
        else:
            address = stack.enter_context(_chromium(folder))
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{address}/json", timeout=PATIENCE) as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        socket_ = connect(target["webSocketDebuggerUrl"], proxy=None, max_size=None)
        yield Page(stack.enter_context(socket_))


def _webengine(folder: Path) -> contextlib.AbstractContextManager[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:  # Qt takes no port 0
        port = server.getsockname()[1]
    variables = {
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_REMOTE_DEBUGGING": f"127.0.0.1:{port}",
        "QTWEBENGINE_CHROMIUM_FLAGS": " ".join(QUIET),
    }
    script = Path(__file__).with_name("webengine_window.py")
    return _running([sys.executable, str(script)], variables, folder)


def _chromium(folder: Path) -> contextlib.AbstractContextManager[str]:
    command = next((p for name in CHROMIUM if (p := shutil.which(name))), None)
    if command is None:
        raise NoBrowserError(INSTALL)
    options = (
        "--headless",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}",
        *QUIET,
        "about:blank",
    )
    return _running([command, *options], {}, folder)


@contextlib.contextmanager
def _running(command: list[str], variables: dict[str, str], folder: Path) -> Iterator[str]:
    """Runs a browser and yields the host and port at which it is driven."""
    path = folder / "browser.log"  # a pipe that nobody empties would stop it
    own = {"XDG_CACHE_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with open(path, "wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | own | variables,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            ended = process.poll() is not None
            said = path.read_text(encoding="utf-8", errors="replace")
            if match := re.search(r"DevTools listening on ws://([^/]+)/", said):
                yield match[1]
                return
            if ended:
                break
            time.sleep(0.02)
        if MISSING_LIBRARY in said:
            raise NoBrowserError(INSTALL)
        raise RuntimeError(f"{command[0]} does not start:\n{said}")
    finally:
        process.kill()
        process.communicate()
