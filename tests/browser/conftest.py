"""One headless Chromium for all tests, and pages that fail on what a reader would not want."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import executable


@dataclass
class Opened:
    """A page, and what it complained of or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = executable()
    assert path, "no Chromium: make browser-test installs it"
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox; it only opens files that these tests made.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a file without a network; options are a context's."""
    contexts = []

    def open_file(path: Path, width: int = 1200, **options: Any) -> Opened:
        context = browser.new_context(offline=True, viewport={"width": width, "height": 1000}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        found = Opened(context.new_page())
        found.page.on("console", lambda m: found.complaints.append(m.text) if m.type in ("error", "warning") else None)
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("dialog", lambda dialog: (found.complaints.append("a dialog"), dialog.dismiss()))
        found.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            for plot in found.page.locator(".plot").all():
                plot.locator("svg").first.wait_for(state="attached")
        return found

    yield open_file
    for context in contexts:
        context.close()
