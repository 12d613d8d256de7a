"""The live typing page, driven as a person would: in a real browser, against a real server."""

import asyncio
import time
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Page, Request, expect

from tests.speed import Promised, patience

PROMPT = "Once upon a time"
LONG = 4000  # more than there is time for

# Notes every visible length of the continuation until the page leaves its typing state.
RECORD_LENGTHS = """
() => {
  const text = document.getElementById("continuation");
  const status = document.getElementById("status");
  window.lengths = [];
  const observer = new MutationObserver(() => {
    const length = text.textContent.length;
    const isNew = length > (window.lengths.at(-1) ?? 0);
    if (isNew && status.dataset.state === "typing") window.lengths.push(length);
  });
  const changes = { subtree: true, childList: true, characterData: true };
  observer.observe(text, changes);
}
"""

COLORS = """
() => {
  const { backgroundColor, color } = getComputedStyle(document.body);
  return { backgroundColor, color };
}
"""


class Server(Protocol):
    url: str


async def open_page(page: Page, server: Server, max_length: int | None = None) -> None:
    await page.goto(server.url)
    await expect(page.locator("#generate")).to_be_enabled()
    if max_length is not None:
        await set_field(page, "max-length", str(max_length))


async def set_field(page: Page, name: str, value: str) -> None:
    """Fills a setting; on a narrow page the settings are folded."""
    await page.locator("#settings").evaluate("details => { details.open = true }")
    await page.fill(f"#{name}", value)


async def expect_state(page: Page, state: str) -> None:
    await expect(page.locator("#status")).to_have_attribute(
        "data-state", state, timeout=patience(60_000)
    )


async def expect_text(page: Page) -> None:
    await expect(page.locator("#continuation")).not_to_be_empty(timeout=patience(60_000))


async def start(page: Page) -> None:
    await page.fill("#prompt", PROMPT)
    await page.click("#generate")
    await expect_text(page)


async def sent_body(page: Page) -> Any:
    """Generates once, to the end; returns what the page posted."""
    async with page.expect_request("**/v1/tapes") as request:
        await start(page)
    await expect_state(page, "done")
    return (await request.value).post_data_json


async def running(server: Server) -> int:
    async with httpx.AsyncClient() as client:
        health: dict[str, Any] = (await client.get(f"{server.url}/health")).json()
    return int(health["running"])


async def idle(server: Server) -> None:
    """Return when the engine runs nothing. What it ran before may have ended by itself."""
    async with asyncio.timeout(patience(1)):
        while await running(server):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_text_grows_step_by_step(page: Page, server: Server) -> None:
    await open_page(page, server)
    await page.evaluate(RECORD_LENGTHS)
    await start(page)
    await expect_state(page, "done")

    lengths: list[int] = await page.evaluate("window.lengths")
    assert len(lengths) >= 5
    assert lengths == sorted(set(lengths))
    shown = await page.locator("#output").text_content()
    continuation = await page.locator("#continuation").text_content()
    assert continuation
    assert shown == PROMPT + continuation


async def test_stop_frees_the_engine_within_a_second(
    page: Page, server: Server, promised: Promised
) -> None:
    await open_page(page, server, max_length=LONG)
    await start(page)
    assert await running(server) == 1

    clicked = time.perf_counter()
    await page.click("#stop")
    await idle(server)
    promised("stopped", time.perf_counter() - clicked, 1)
    await expect_state(page, "done")
    await expect(page.locator("#receipt")).to_contain_text("cancelled")
    await expect(page.locator("#generate")).to_be_focused()


async def test_meter_shows_first_token_and_rate(page: Page, server: Server) -> None:
    await open_page(page, server)
    await start(page)
    await expect_state(page, "done")

    for figure in ("ttft", "rate", "tokens"):
        assert float(await page.locator(f"#{figure}").inner_text()) > 0
    receipt = page.locator("#receipt")
    for row in ("Finish", "Completion", "First token", "Total", "Rate", "Tape"):
        await expect(receipt).to_contain_text(row)


async def test_controls_become_the_request(page: Page, server: Server) -> None:
    await open_page(page, server, max_length=20)
    for name, value in {"top-k": "40", "top-p": "0.9", "seed": "7"}.items():
        await set_field(page, name, value)
    assert await sent_body(page) == {
        "prompt": PROMPT,
        "max_length": 20,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 7,
    }

    await page.locator("label[for=mode-greedy]").click()
    assert await sent_body(page) == {"prompt": PROMPT, "max_length": 20, "temperature": 0}


async def test_refused_value_is_explained_beside_its_field(page: Page, server: Server) -> None:
    await open_page(page, server)
    await set_field(page, "temperature", "-1")
    await page.click("#generate")

    field = page.locator("#temperature")
    await expect(page.locator("#temperature-error")).to_be_visible()
    await expect(page.locator("#temperature-error")).to_contain_text("temperature")
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_be_focused()
    await expect_state(page, "error")

    await field.fill("0.7")
    await expect(page.locator("#temperature-error")).to_be_hidden()
    await page.click("#generate")
    await expect_text(page)


async def test_keyboard_alone_generates_and_stops(page: Page, server: Server) -> None:
    await open_page(page, server, max_length=LONG)
    await page.focus("#prompt")
    await page.keyboard.press("ControlOrMeta+a")
    await page.keyboard.type(PROMPT)
    await page.keyboard.press("ControlOrMeta+Enter")
    await expect_text(page)

    await page.keyboard.press("Escape")
    await idle(server)
    await expect(page.locator("#status")).to_have_text("Stopped.")
    await expect(page.locator("#announcer")).to_have_text("Stopped.")


async def test_reload_reads_the_same_tape_again(page: Page, server: Server) -> None:
    await open_page(page, server, max_length=LONG)
    await start(page)
    before = await page.locator("#continuation").text_content()
    await page.reload()
    await expect_text(page)

    await page.click("#stop")
    await expect_state(page, "done")
    after = await page.locator("#continuation").text_content()
    assert before
    assert after
    assert after.startswith(before)


async def test_settings_are_kept(page: Page, server: Server) -> None:
    await open_page(page, server, max_length=37)
    await page.locator("label[for=mode-greedy]").click()
    await page.reload()

    await expect(page.locator("#max-length")).to_have_value("37")
    await expect(page.locator("#mode-greedy")).to_be_checked()
    await expect(page.locator("#temperature")).to_be_disabled()


async def test_themes_differ_and_the_choice_is_kept(page: Page, server: Server) -> None:
    await page.emulate_media(color_scheme="light")
    await open_page(page, server)
    light = await page.evaluate(COLORS)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(COLORS)
    assert light["backgroundColor"] != dark["backgroundColor"]
    assert light["color"] != dark["color"]

    await page.click("#theme")
    assert await page.evaluate(COLORS) == light
    await page.reload()
    assert await page.evaluate(COLORS) == light
    await expect(page.locator("#theme")).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize(("width", "height"), [(360, 640), (390, 844)])
async def test_phone_does_not_scroll_sideways(
    page: Page, server: Server, width: int, height: int
) -> None:
    await page.set_viewport_size({"width": width, "height": height})
    await open_page(page, server)
    await expect(page.locator("#temperature")).to_be_hidden()
    await set_field(page, "max-length", "30")
    await start(page)
    await expect_state(page, "done")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_console_stays_clean(page: Page, server: Server) -> None:
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    await open_page(page, server, max_length=20)
    await start(page)
    await expect_state(page, "done")
    assert problems == []


async def test_docs_render_without_leaving_the_origin(page: Page, server: Server) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    await page.goto(f"{server.url}/docs")
    await expect(page.locator(".opblock").first).to_be_visible(timeout=patience(20_000))
    await expect(page.locator(".opblock-summary-path", has_text="/tapes").first).to_be_visible()

    home = urlsplit(server.url).netloc
    strangers = [url for url in asked if urlsplit(url).scheme != "data"]
    strangers = [url for url in strangers if urlsplit(url).netloc != home]
    assert strangers == []
