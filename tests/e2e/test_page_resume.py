"""The page keeps its answer: through reloads, in other tabs, over lost connections and crashes."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, Request, Route, expect

from tests.e2e.test_page import (
    PROMPT,
    expect_state,
    expect_text,
    open_page,
    start,
)
from tests.proxy import Proxy
from tests.server import RunningServer, running
from tests.speed import patience

LONG = 6000
TAPE = "**/v1/tapes/*"

# Everything that the status line has said.
RECORD_STATUS = """
() => {
  window.said = [];
  const status = document.getElementById("status");
  new MutationObserver(() => window.said.push(status.textContent))
    .observe(status, { childList: true, characterData: true, subtree: true });
}
"""


# Resolves when the tab has been told that another one began a tape.
HEAR = """
() => {
  window.heard = new Promise((resolve) => addEventListener("storage", ({ key }) => {
    if (key === "tickertape.tape") resolve();
  }));
}
"""


@pytest.fixture
async def other(page: Page) -> AsyncIterator[Page]:
    """Another tab of the same browser."""
    tab = await page.context.new_page()
    yield tab
    await tab.close()


async def start_long(page: Page) -> None:
    """The page has no field for it, but no early end-of-text shall spoil a test."""

    async def to_the_full_length(route: Route) -> None:
        body = route.request.post_data_json | {"ignore_eos": True}
        await route.continue_(post_data=json.dumps(body))

    await page.route("**/v1/tapes", to_the_full_length)
    await start(page)


async def cut(page: Page, proxy: Proxy) -> None:
    """The page has noticed, and no try of its can get through."""
    proxy.refuses = True
    proxy.cut()
    await expect(page.locator("#status")).to_contain_text("Connection lost")


async def text_of(page: Page) -> str:
    return await page.locator("#continuation").text_content() or ""


async def whole_text(page: Page, url: str) -> str:
    """What the tape of the page's receipt holds."""
    tape = await page.locator("#receipt div:last-child dd").inner_text()
    async with httpx.AsyncClient(base_url=url, timeout=patience(30)) as http:
        answer = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    text: str = answer.json()["generated_text"]
    return text


async def expect_whole_text_once(page: Page, url: str) -> None:
    await expect_state(page, "done")
    assert await text_of(page) == await whole_text(page, url) != ""


async def test_another_tab_types_the_same_answer_and_keeps_it(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(page, server, max_length=LONG)
    await start_long(page)
    await open_page(other, server)
    await expect_text(other)
    await expect(other.locator("#given")).to_have_text(PROMPT)
    await page.click("#stop")
    for tab in (page, other):
        await expect_whole_text_once(tab, server.url)
    answer = await text_of(page)
    assert await text_of(other) == answer
    await other.reload()
    await expect_state(other, "done")
    assert await text_of(other) == answer


async def test_a_blank_tab_that_is_open_follows(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(other, server)
    await open_page(page, server, max_length=LONG)
    await start_long(page)
    await expect_text(other)
    await other.click("#stop")
    for tab in (page, other):
        await expect_whole_text_once(tab, server.url)
    assert await text_of(page) == await text_of(other)


async def test_a_tab_with_an_answer_of_its_own_is_left_alone(
    page: Page, other: Page, server: RunningServer
) -> None:
    await open_page(other, server, max_length=10)
    await start(other)
    await expect_state(other, "done")
    own = await text_of(other)
    await other.evaluate(HEAR)
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    other.on("request", note)

    await open_page(page, server, max_length=LONG)
    await start_long(page)
    await other.evaluate("window.heard")
    await other.evaluate("fetch('/health').then(() => null)")
    assert asked == [f"{server.url}/health"]
    assert await text_of(other) == own

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
    async with other.expect_response(TAPE):
        await open_page(other, server)
    await expect_state(other, "idle")
    assert await text_of(other) == ""


async def test_a_reload_over_a_bad_connection_still_shows_the_answer(
    page: Page, server: RunningServer
) -> None:
    async def lose(route: Route) -> None:
        await route.abort()

    await open_page(page, server, max_length=10)
    await start(page)
    await expect_state(page, "done")
    await page.route(TAPE, lose, times=1)
    await page.reload()
    await expect_whole_text_once(page, server.url)


async def test_a_tape_that_is_gone_leaves_a_clean_page(page: Page, server: RunningServer) -> None:
    await open_page(page, server, max_length=10)
    await start(page)
    await expect_state(page, "done")
    gone = {"prompt": PROMPT, "location": f"/v1/tapes/{'A' * 22}"}
    await page.evaluate("kept => sessionStorage['tickertape.tape'] = JSON.stringify(kept)", gone)
    async with page.expect_response(TAPE) as response:
        await page.reload()
    assert (await response.value).status == 404
    await expect(page.locator("#generate")).to_be_enabled()
    await expect_state(page, "idle")
    assert await page.locator("#output").text_content() == ""
    await start(page)
    await expect_state(page, "done")


@pytest.mark.long
async def test_a_beginning_that_is_kept_no_longer_is_told_to_the_end(
    page: Page, tmp_path: Path
) -> None:
    with running(tmp_path / "log", "--max-tape-memory", "20KiB") as own:
        await open_page(page, own, max_length=300)
        await start_long(page)
        await expect_state(page, "done")
        await expect(page.locator("#status")).not_to_contain_text("hole")
        whole = await text_of(page)
        await page.reload()
        await expect_whole_text_once(page, own.url)
        await expect(page.locator("#status")).to_contain_text("Finished")
        await expect(page.locator("#status")).to_contain_text("Entries 1 to ")
        rest = await text_of(page)
        assert whole.endswith(rest)
        assert rest != whole
        assert own.stop() == 0


@pytest.mark.long
async def test_the_engine_dies_while_it_types_and_the_text_goes_on(
    page: Page, tmp_path: Path
) -> None:
    with running(tmp_path / "log") as own:
        await open_page(page, own, max_length=400)
        await page.evaluate(RECORD_STATUS)
        await start_long(page)
        os.kill(own.health()["engine_pid"], signal.SIGKILL)
        await expect_whole_text_once(page, own.url)
        await expect(page.locator("#receipt")).to_contain_text("400")
        said: list[str] = await page.evaluate("window.said")
        recovering = next(n for n, words in enumerate(said) if "engine is restarting" in words)
        assert "Typing …" in said[recovering:]
        assert own.stop() == 0


async def test_the_connection_is_lost_for_a_while(page: Page, server: RunningServer) -> None:
    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=600)
        await start_long(page)
        for _ in range(3):
            await cut(page, proxy)
            async with page.expect_response(TAPE):
                proxy.refuses = False
        await expect_whole_text_once(page, server.url)
        await expect(page.locator("#receipt")).to_contain_text("600")


async def test_entries_that_come_again_are_not_typed_again(
    page: Page, server: RunningServer
) -> None:
    """Our server repeats none: connections that are written here do."""
    frames = [
        f'id: T:{n}\nevent: token\ndata: {{"text":"{n} ","token_ids":[0],"index":0}}\n\n'
        for n in range(1, 6)
    ]
    end = 'id: T:6\nevent: done\ndata: {"finish_reason":"stop"}\n\n'
    connections = iter(["".join(frames[:3]), "".join([*frames, end])])

    async def repeat(route: Route) -> None:
        await route.fulfill(content_type="text/event-stream", body=next(connections))

    await page.route(TAPE, repeat)
    await open_page(page, server, max_length=1)
    await start(page)
    await expect_state(page, "done")
    assert await text_of(page) == "1 2 3 4 5 "


@pytest.mark.long
async def test_a_proxy_that_answers_for_a_server_out_of_reach_is_asked_again(
    page: Page, server: RunningServer
) -> None:
    async def bad_gateway(route: Route) -> None:
        await route.fulfill(status=502, body="Bad Gateway")

    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=600)
        await start_long(page)
        await page.route(TAPE, bad_gateway)
        proxy.cut()
        await expect(page.locator("#status")).to_contain_text(re.compile("Next try in [248] s"))
        await page.unroute(TAPE)
        await expect_whole_text_once(page, server.url)


async def test_stop_works_while_the_server_is_out_of_reach(
    page: Page, server: RunningServer
) -> None:
    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=LONG)
        await start_long(page)
        await cut(page, proxy)
        await page.click("#stop")
        await expect(page.locator("#status")).to_contain_text("Reading stopped.")
        await expect(page.locator("#generate")).to_be_visible()


async def test_stop_does_not_wait_for_the_next_try(page: Page, server: RunningServer) -> None:
    async with Proxy(server.url) as proxy:
        await open_page(page, proxy, max_length=LONG)
        await start_long(page)
        await cut(page, proxy)
        await expect(page.locator("#status")).to_contain_text(
            "Next try in 8 s", timeout=patience(15_000)
        )
        proxy.refuses = False
        await page.click("#stop")
        await expect(page.locator("#status")).to_have_text("Stopped.", timeout=patience(5000))
        await expect_whole_text_once(page, server.url)


async def test_a_tape_that_the_server_has_dropped_can_be_generated_again(
    page: Page, tmp_path: Path
) -> None:
    forgetful = ("--grace", "0", "--tape-ttl", "0.1")
    with running(tmp_path / "log", *forgetful) as own:
        async with Proxy(own.url) as proxy:
            await open_page(page, proxy, max_length=LONG)
            await start_long(page)
            await cut(page, proxy)
            await own.health_becomes(10, tapes=0)
            proxy.refuses = False
            gone = "The server no longer has this tape."
            await expect(page.locator("#status")).to_have_text(gone, timeout=patience(10_000))
            await page.click("#retry")
            await expect(page.locator("#status")).to_have_text("Typing …")
            await page.click("#stop")
            await expect_state(page, "done")
        assert own.stop() == 0


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
