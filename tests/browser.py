"""The installed Chromium, driven by playwright: one page that notes what it asks for and what it complains of."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"none of {', '.join(NAMES)} is installed (scripts/test.sh says how to get one)"
PATIENCE = 60_000  # milliseconds for anything to happen on a busy machine


class Browser:
    """One page: `browser.page` is playwright's; `requests` and `complaints` grow while it is used."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []  # every address the page asked for
        self.complaints: list[str] = []  # exceptions, console errors and warnings
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.requests.append(request.url[:200]))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)

    def open(self, url: str) -> None:
        """Go to `url` and wait until the page says that it is ready."""
        self.page.goto(url)
        self.wait_for("document.documentElement.dataset.ready === 'yes'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        return self.page.evaluate(expression)

    def wait_for(self, condition: str) -> None:
        """Ask until the expression is true; playwright's own wait_for_function needs a page that allows eval()."""
        deadline = time.monotonic() + PATIENCE / 1000
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            self.page.wait_for_timeout(50)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


def find_browser() -> str | None:
    """The first browser that is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def launch(path: str) -> Iterator[Browser]:
    """A headless browser with one page; no sandbox (playwright's default), which root could not have."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, timeout=PATIENCE)
        try:
            yield Browser(chromium.new_page(viewport={"width": 1300, "height": 1500}))
        finally:
            chromium.close()
