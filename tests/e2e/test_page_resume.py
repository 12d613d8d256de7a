"""The page keeps its answer: through reloads, in other tabs, over lost connections and crashes."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.e2e.test_page import (
    PROMPT,
    expect_state,
    expect_text,
    open_page,
    start,
)
from tests.proxy import Proxy
from tests.server import RunningServer, running

LONG = 2000

# Every state that the status line has shown.
RECORD_STATUS = """
() => {
  window.said = [];
  const status = document.getElementById("status");
  new MutationObserver(() => window.said.push(status.textContent))
    .observe(status, { childList: true, characterData: true, subtree: true });
}
"""


@pytest.fixture
async def other(page: Page) -> AsyncIterator[Page]:
    """Another tab of the same browser."""
    tab = await page.context.new_page()
    yield tab
    await tab.close()


async def text_of(page: Page) -> str:
    return await page.locator("#continuation").text_content() or ""


async def whole_text(page: Page, url: str) -> str:
    """What the tape of the page's receipt holds."""
    tape = await page.locator("#receipt div:last-child dd").inner_text()
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    text: str = answer.json()["generated_text"]
    return text


async def expect_whole_text_once(page: Page, url: str) -> None:
    await expect_state(page, "done")
    assert await text_of(page) == await whole_text(page, url) != ""


async def test_another_tab_types_the_same_answer(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(page, server, max_length=LONG)
    await start(page)
    await open_page(other, server)
    await expect_text(other)
    await expect(other.locator("#given")).to_have_text(PROMPT)
    await page.click("#stop")
    for tab in (page, other):
        await expect_whole_text_once(tab, server.url)
    assert await text_of(page) == await text_of(other)


async def test_a_blank_tab_that_is_open_follows(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(other, server)
    await open_page(page, server, max_length=LONG)
    await start(page)
    await expect_text(other)
    await other.click("#stop")
    for tab in (page, other):
        await expect_whole_text_once(tab, server.url)


async def test_a_tab_with_an_answer_of_its_own_is_left_alone(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(other, server, max_length=10)
    await start(other)
    await expect_state(other, "done")
    own = await text_of(other)
    await open_page(page, server, max_length=LONG)
    await start(page)
    await other.reload()
    await expect_state(other, "done")
    assert await text_of(other) == own
    await page.click("#stop")
    await expect_state(page, "done")


async def test_an_answer_that_has_ended_is_not_pushed_on_a_new_tab(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(page, server, max_length=10)
    await start(page)
    await expect_state(page, "done")
    async with other.expect_response("**/v1/tapes/*"):
        await open_page(other, server)
    await expect_state(other, "idle")
    assert await text_of(other) == ""


async def test_a_tape_that_is_gone_leaves_a_clean_page(page: Page, server: RunningServer) -> None:
    await open_page(page, server, max_length=10)
    await start(page)
    await expect_state(page, "done")
    gone = {"prompt": PROMPT, "location": f"/v1/tapes/{'A' * 22}"}
    await page.evaluate("kept => sessionStorage['tickertape.tape'] = JSON.stringify(kept)", gone)
    async with page.expect_response("**/v1/tapes/*"):
        await page.reload()
    await expect(page.locator("#generate")).to_be_enabled()
    await expect_state(page, "idle")
    await start(page)
    await expect_state(page, "done")


async def test_the_engine_dies_while_it_types_and_the_text_goes_on(
    page: Page, tmp_path: Path
) -> None:
    with running(tmp_path / "log") as own:
        await open_page(page, own, max_length=1200)
        await page.evaluate(RECORD_STATUS)
        await page.locator("label[for=mode-greedy]").click()
        await start(page)
        os.kill(own.health()["engine_pid"], signal.SIGKILL)
        await expect_whole_text_once(page, own.url)
        said: list[str] = await page.evaluate("window.said")
        recovering = next(n for n, words in enumerate(said) if "engine is restarting" in words)
        assert "Typing …" in said[recovering:]
        assert own.stop() == 0


async def test_the_connection_is_lost_for_a_while(page: Page, server: RunningServer) -> None:
    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=1500)
        await page.evaluate(RECORD_STATUS)
        await start(page)
        for _ in range(3):
            proxy.refuses = True
            proxy.cut()
            await expect(page.locator("#status")).to_contain_text("Connection lost")
            tried = len(proxy.heads)
            proxy.refuses = False
            async with page.expect_response("**/v1/tapes/*"):
                pass
            assert len(proxy.heads) > tried
        await expect_whole_text_once(page, server.url)


async def test_stop_works_while_the_connection_is_lost(page: Page, server: RunningServer) -> None:
    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=LONG)
        await start(page)
        proxy.refuses = True
        proxy.cut()
        await expect(page.locator("#status")).to_contain_text("Connection lost")
        await page.click("#stop")
        await expect(page.locator("#status")).to_contain_text("Reading stopped.")
        await expect(page.locator("#generate")).to_be_visible()


async def test_a_tape_that_the_server_has_dropped_can_be_generated_again(
    page: Page, server: RunningServer
) -> None:
    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=LONG)
        await start(page)

        async def dropped(route: Route) -> None:
            await route.fulfill(status=404, json={"error": {"message": "no such tape"}})

        await page.route("**/v1/tapes/*", dropped)
        proxy.cut()
        await expect(page.locator("#status")).to_have_text("The server no longer has this tape.")
        await page.unroute("**/v1/tapes/*")
        await page.click("#retry")
        await expect_text(page)
        await page.click("#stop")
        await expect_state(page, "done")


async def test_a_key_is_asked_for_when_the_server_wants_one(page: Page, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open sesame\n")
    with running(tmp_path / "log", "--api-key-file", str(keys)) as locked:
        await open_page(page, locked, max_length=20)
        await expect(page.locator("#key")).to_be_hidden()
        await page.click("#generate")
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type("open sesame")
        await page.keyboard.press("Enter")
        await expect_state(page, "done")
        text = await text_of(page)
        await page.reload()
        await expect_state(page, "done")
        assert await text_of(page) == text != ""
        assert locked.stop() == 0
