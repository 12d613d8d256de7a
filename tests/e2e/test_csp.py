"""The page and the API reference work under their own policy, and what breaks it is stopped."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.e2e.chat_page import ask, expect_state, open_chat
from tests.server import RunningServer

# Told by the browser itself, whatever the console shows.
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`);
});
"""


@pytest.fixture
async def watched(browser: Browser) -> AsyncIterator[Page]:
    """A page that notes what its policy stops; nothing must go wrong in it."""
    context = await browser.new_context()
    page = await context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if is_bad(message.type) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    await page.add_init_script(NOTE_VIOLATIONS)
    yield page
    violations = await page.evaluate("window.violations")
    await context.close()
    assert violations == []
    assert wrong == []


def is_bad(kind: str) -> bool:
    return kind in ("error", "warning")


async def test_the_page_works(watched: Page, server: RunningServer) -> None:
    await open_chat(watched, server.url, max_length=5)
    await watched.click("#theme")
    await ask(watched)
    await expect_state(watched, "done")
    await watched.locator("[data-act=second]").click()
    await expect(watched.locator(".second canvas")).to_be_visible()


async def test_the_operations_page_works(watched: Page, server: RunningServer) -> None:
    """uPlot's styles, too."""
    await watched.goto(f"{server.url}/dash")
    await watched.click("#theme")
    await watched.locator("#summary summary").click()
    await expect(watched.locator("#state")).to_contain_text("engine ready")
    await expect(watched.locator(".u-wrap canvas")).to_have_count(6)


async def test_the_reference_works(watched: Page, server: RunningServer) -> None:
    await watched.goto(f"{server.url}/docs")
    health = watched.locator("#health")
    await health.locator("summary").first.click()
    await health.get_by_role("button", name="Send").click()
    await expect(health.locator(".try-output")).to_contain_text('"status": "ok"')


async def test_what_somebody_smuggles_in_does_not_run(page: Page, server: RunningServer) -> None:
    """The negative control."""
    await page.add_init_script(NOTE_VIOLATIONS)
    for path in ("/", "/dash", "/docs", "/nothing"):
        await page.goto(server.url + path)
        await page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.smuggled = true";
              document.body.append(script);
              document.body.insertAdjacentHTML("beforeend", "<p style='color: red'>");
            }"""
        )
        assert await page.evaluate("window.smuggled") is None
        stopped = {line.split()[0] for line in await page.evaluate("window.violations")}
        assert stopped == {"script-src-elem", "style-src-attr"}


async def test_no_page_frames_ours(page: Page, server: RunningServer) -> None:
    frame = f"<iframe src='{server.url}/'></iframe>"
    await page.set_content(frame)
    await expect(page.frame_locator("iframe").locator("#prompt")).to_have_count(0)
