"""A real browser: Debian's chromium, or whatever Chrome the machine has, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.speed import patience

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = Path(__file__).parent / "screenshots"


def find_browser() -> str:
    """Raises RuntimeError: without a browser the page is not tested, and that must be seen."""
    named = os.environ.get("TICKERTAPE_TEST_BROWSER")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        raise RuntimeError(
            "no Chromium or Chrome found; install it (Debian: apt-get install chromium) "
            "or name one in TICKERTAPE_TEST_BROWSER"
        )
    return found


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=patience(5_000))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A page in a fresh context; how it looked at the end is kept in screenshots/."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(patience(30_000))
    page = await context.new_page()
    yield page
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    await context.close()
