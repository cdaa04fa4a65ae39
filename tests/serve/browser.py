"""A headless Chromium for tests of the page, spoken to over a pipe in the DevTools protocol; nothing but Python is needed.

    with Browser(folder) as browser:
        page = browser.page(width=1200)
        page.open("http://127.0.0.1:8000/")
        page.wait("document.querySelector('#labels')")
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--mute-audio", "--no-default-browser-check", "--metrics-recording-only", "--disable-breakpad",
    "--disable-features=Translate,MediaRouter,OptimizationHints,AutofillServerCommunication", "--remote-debugging-pipe",
    "--force-color-profile=srgb", "--no-proxy-server", "--lang=en-US",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and writes to 4; subprocess cannot place them there by itself.
LAUNCH = "import os,sys; r,w=map(int,sys.argv[1:3]); os.dup2(r,3); os.dup2(w,4); os.execv(sys.argv[3], sys.argv[3:])"
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " "), "ArrowLeft": (37, ""), "ArrowUp": (38, ""),
    "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Home": (36, ""), "End": (35, ""),
}  # fmt: skip


def find_chromium() -> str | None:
    """The browser of this machine; OSTENSION_CHROMIUM names another."""
    return os.environ.get("OSTENSION_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One process with its profile in `folder`."""

    def __init__(self, folder: Path):
        path = find_chromium()
        assert path is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [path, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", LAUNCH, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._next, self._answers = b"", 0, {}
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self.send("Browser.close", wait=False)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, params: dict[str, Any] | None = None, session: str | None = None, *, wait: bool = True) -> Any:
        """A command and its result."""
        self._next += 1
        number = self._next
        message = {"id": number, "method": method, "params": params or {}, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        if not wait:
            return None
        end = time.monotonic() + PATIENCE_S
        while number not in self._answers:
            self.pump(end - time.monotonic())
            if time.monotonic() > end:
                raise TimeoutError(f"no answer to {method}")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def pump(self, seconds: float) -> None:
        """Take in what the browser says within some time."""
        if not select.select([self._in], [], [], max(0.0, seconds))[0]:
            return
        data = os.read(self._in, 1 << 20)
        if not data:
            raise RuntimeError("the browser has ended")
        *whole, self._buffer = (self._buffer + data).split(b"\0")
        for one in whole:
            message = json.loads(one)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def page(self, *, width: int = 1280, height: int = 900, dark: bool = False, reduced: bool = True) -> Page:
        """A new page of its own: nothing of another one's storage is there."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session, target, context)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            page.send(f"{domain}.enable")
        page.look(width=width, height=height, dark=dark, reduced=reduced)
        return page


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, target: str, context: str):
        self.browser, self.session, self.target, self.context = browser, session, target, context

    def send(self, method: str, params: dict[str, Any] | None = None) -> Any:
        return self.browser.send(method, params, self.session)

    def look(self, *, width: int, height: int = 900, dark: bool = False, reduced: bool = True) -> None:
        """Size, colours and motion."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"},
        ]
        self.send("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        self.send("Page.navigate", {"url": url})
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, code: str) -> Any:
        """The value of an expression, awaited."""
        found = self.send("Runtime.evaluate", {"expression": code, "awaitPromise": True, "returnByValue": True})
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENCE_S) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page may be between two documents
                if (found := self.run(condition)) or found == {}:  # an element comes as an empty tree
                    return found
            self.browser.pump(0.05)
        text = self.run("document.body?.innerText.slice(0, 1500)")
        raise AssertionError(f"never came: {condition}\n{text}\n{self.errors()}")

    def text(self, selector: str) -> str:
        """The text that is seen there."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            at = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", at)

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key of the keyboard."""
        code, text = KEYS[key]
        name = "Space" if key == " " else key
        base = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", **base, **({"text": text} if text else {})})
        self.send("Input.dispatchKeyEvent", {"type": "keyUp", **base})

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", {"text": text})

    def write(self, selector: str, text: str) -> None:
        """Text instead of what a field has."""
        self.run(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        if text:
            self.type(text)
        else:
            self.send("Input.dispatchKeyEvent", {"type": "keyDown", "key": "Delete", "windowsVirtualKeyCode": 46})

    def choose(self, selector: str, value: str) -> None:
        """An option of a select."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.value = {json.dumps(value)}; {found}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def set_files(self, selector: str, paths: list[Path]) -> None:
        """Files as chosen in a file dialogue."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
        self.send("DOM.setFileInputFiles", {"nodeId": node, "files": [str(path) for path in paths]})

    def drop(self, paths: list[Path], x: float = 640, y: float = 600) -> None:
        """Files dropped from outside."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    def focused(self) -> str:
        """The id, or the name, of what has the focus."""
        return self.run(
            "(() => { const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent; })()"
        )

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        data = self.send("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})["data"]
        path.write_bytes(base64.b64decode(data))

    def events(self, method: str) -> list[dict[str, Any]]:
        """What came of one kind of event."""
        self.browser.pump(0)
        mine = [one for one in self.browser.events if one.get("sessionId") == self.session]
        return [one["params"] for one in mine if one["method"] == method]

    def errors(self) -> list[str]:
        """Everything that would be red in the console, and all warnings."""
        thrown = [one["exceptionDetails"] for one in self.events("Runtime.exceptionThrown")]
        said = [one for one in self.events("Runtime.consoleAPICalled") if one["type"] in ("error", "warning", "assert")]
        logged = [one["entry"] for one in self.events("Log.entryAdded")]
        return [
            *(one.get("exception", {}).get("description", one["text"]) for one in thrown),
            *(" ".join(str(part.get("value", part.get("description"))) for part in one["args"]) for one in said),
            *(f"{one['text']} {one.get('url', '')}" for one in logged if one["level"] in ("error", "warning")),
        ]

    def addresses(self) -> list[str]:
        """Every address that was asked for."""
        return [one["request"]["url"] for one in self.events("Network.requestWillBeSent")]

    def tree(self) -> list[dict[str, Any]]:
        """The accessibility tree as a list, without what is ignored."""
        return [node for node in self.send("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]

    def close(self) -> None:
        self.browser.send("Target.disposeBrowserContext", {"browserContextId": self.context})
        self.browser.events = [one for one in self.browser.events if one.get("sessionId") != self.session]
