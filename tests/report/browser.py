"""A headless Chromium for tests of the page: the machine's own, driven by Playwright over the DevTools protocol.

One browser serves all tests of a module; each page that a test opens has a context of its own, so that no test finds
what another has set. The context is offline: a page that asks the network for something fails, and is seen to ask.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["Opened", "all_drawn", "chromium", "opened", "require_browser", "settled"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 60_000  # for a machine whose cores compile something else; nothing waits for it to pass
DRAWN = "[...document.querySelectorAll('.chart')].filter((chart) => !['yes', 'failed'].includes(chart.dataset.drawn))"


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_browser() -> None:
    """Skips the test if it cannot have its browser, and says why; fails it where EPBENCH_REQUIRE_BROWSER=1."""
    missing = [
        what
        for what, is_here in {
            f"no {' or '.join(NAMES)} in PATH": find_chromium() is not None,
            "no playwright in this environment": find_spec("playwright") is not None,
        }.items()
        if not is_here
    ]
    if missing:
        refuse = pytest.fail if os.environ.get("EPBENCH_REQUIRE_BROWSER") == "1" else pytest.skip
        refuse(f"tests of the page need a browser: {', '.join(missing)}")


@contextmanager
def chromium() -> "Iterator[Browser]":
    """The browser, until the block ends; in the sandbox only where the kernel and the user have one."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page, what its console and its scripts complained of, and what it asked for."""

    page: "Page"
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def value(self, script: str, argument: Any = None) -> Any:
        """What a function, or an expression, of JavaScript gives in the page."""
        return self.page.evaluate(script, argument)


@contextmanager
def opened(
    browser: "Browser",
    path: Path | None = None,
    fragment: str = "",
    *,
    width: int = 1200,
    height: int = 900,
    **options: Any,
) -> Iterator[Opened]:
    """The page of a file, or an empty one, in a window of this size.

    ``options`` are those of Playwright's ``Browser.new_context``.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
    context.set_default_timeout(TIMEOUT_MS)
    try:
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.console.append(message.text))
        found.page.on("pageerror", lambda error: found.console.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        if path is not None:
            found.page.goto(f"{path.as_uri()}{fragment}")
        yield found
    finally:
        context.close()


def settled(found: Opened) -> None:
    """Until the browser has painted what the last action changed."""
    found.value("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")


def all_drawn(found: Opened) -> None:
    """Makes the window as high as the page, which brings every chart into view, and waits until all are drawn."""
    for _ in range(2):  # charts may be higher than their places
        height = found.value("document.documentElement.scrollHeight")
        found.page.set_viewport_size({"width": found.value("innerWidth"), "height": height})
        found.page.wait_for_function(f"() => {DRAWN}.length === 0")
    settled(found)
