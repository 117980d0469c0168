"""A real headless Chromium, driven through its debugging pipe: nothing but the browser itself is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
          "--no-first-run", "--hide-scrollbars", "--disable-background-networking", "--disable-extensions")  # fmt: skip


def program() -> str:
    """Return the browser; where there is none, skip and say so, but fail in continuous integration."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        reason = "no chromium on this machine: apt-get install chromium, or set CHROMIUM to a browser's path"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return str(found)


class Page:
    """One tab."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write, self._read = write_to, read_from
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def remember(self, **items: str) -> None:
        """Put items into the local storage of every page before it loads."""
        code = "".join(f"localStorage.setItem({json.dumps(k)}, {json.dumps(v)});" for k, v in items.items())
        self._ask("Page.addScriptToEvaluateOnNewDocument", source=f"try {{{code}}} catch {{}}")

    def _ask(self, method: str, **given: Any) -> Any:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": given}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self, timeout_s: float = 60) -> Any:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], timeout_s)[0], "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def open(self, address: str, width: int = 1400, height: int = 800) -> None:
        """Go to an address in a window of so many pixels."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        # a page that differs after the # alone would not be loaded again
        self._ask("Page.navigate", url="about:blank")
        self._ask("Page.navigate", url=address)

    def run(self, code: str) -> Any:
        """Return what a JavaScript expression comes to."""
        answer = self._ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait_for(self, *words: str, timeout_s: float = 90) -> str:
        """Wait until the page shows all words; returns its text."""
        return self.wait_until(
            f"{json.dumps(words)}.every(w => document.body.innerText.includes(w))", timeout_s
        )

    def wait_until(self, code: str, timeout_s: float = 90) -> str:
        """Wait until a JavaScript expression is true; returns the page's text."""
        end = time.monotonic() + timeout_s
        while not self.run(f"!!document.body && !!({code})"):
            assert time.monotonic() < end, f"{code} did not come true; the page says:\n{self.text}"
            time.sleep(0.2)
        return self.text

    def click(self, text: str, kind: str = "*") -> None:
        """Click the innermost element of a kind that shows exactly this text."""
        find = (
            f"[...document.querySelectorAll({json.dumps(kind)})].filter(e => e.innerText && e.innerText.trim() ==="
            f" {json.dumps(text)}).pop()"
        )
        self.wait_until(find)
        self.run(f"{find}.click()")

    def shoot(self, path: Path) -> Path:
        """Write a PNG of the window."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))
        return path


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile, and end it."""
    from_browser, to_us = os.pipe()
    from_us, to_browser = os.pipe()

    def pass_on() -> None:
        # the browser reads from 3 and writes to 4; first out of the way of each other
        reading, writing = os.dup2(from_us, 10), os.dup2(to_us, 11)
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    words = [program(), *_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(words, preexec_fn=pass_on, close_fds=False, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    try:
        yield Page(to_browser, from_browser)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to_browser)
        os.close(from_browser)
