"""One made-up site for all tests of this folder, and a browser that fails a test for any error, warning or request that leaves the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rbench_results.site.build import build_site
from results.site.synthetic import Maker, Site, fill

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with fill(tmp_path_factory.mktemp("results")) as store:
        yield Site(store, build_site(store).parent)


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    made = Maker(tmp_path)
    made.model("net")
    yield made
    made.store.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Any]:
    """visit(file, width=…, dark=…, script=…) -> the page; whatever it complains about or asks the network for fails the test."""
    trouble: list[str] = []
    contexts: list[BrowserContext] = []

    def opened(name: str, *, width: int = 1280, dark: bool = False, script: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", java_script_enabled=script, offline=True
        )
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url}"))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file://", "data:")) else trouble.append(f"left the page: {request.url}"),
        )
        page.goto(f"{site.root.as_uri()}/{name}")
        contexts.append(context)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not trouble
