"""An answer on the page outlives the server, a proxy that answers for it, and its own beginning."""

import json
import os
import re
import signal
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.e2e.chat_page import (
    LONG,
    answer,
    ask_long,
    expect_entries,
    expect_state,
    expect_whole,
    open_chat,
    snapshot,
    stored,
)
from tests.proxy import Proxy
from tests.redis import redis
from tests.server import RunningServer, parse_frames, running
from tests.speed import patience

TAPE = re.compile(r"/v1/tapes/[A-Za-z0-9_-]{22}$")


async def token_ids(url: str, tape: str) -> list[int]:
    """Of a tape that has ended."""
    async with httpx.AsyncClient(base_url=url, timeout=patience(30)) as http:
        frames = parse_frames((await http.get(f"/v1/tapes/{tape}")).text)
    found = [json.loads(frame.data or "") for frame in frames if frame.event == "token"]
    return [token for entry in found for token in entry["token_ids"]]


@pytest.mark.long
async def test_the_server_is_killed_and_started_again_while_it_types(
    page: Page, tmp_path: Path
) -> None:
    """With tapes in Redis. What a server alone keeps in its memory is gone with it."""
    with redis(tmp_path) as store:
        flags = ("--tapes", store.url)
        with running(tmp_path / "log1", *flags) as first:
            async with Proxy(first.url) as proxy:
                await open_chat(page, proxy.url, max_length=400)
                await ask_long(page)
                await expect_entries(page, 20)
                os.killpg(first.process.pid, signal.SIGKILL)
                first.process.wait(patience(30))
                with running(tmp_path / "log2", *flags) as second:
                    proxy.lead_to(second.url)
                    await expect_whole(page, second.url)
                    await expect(page.locator("#count-gaps")).to_have_text("0")
                    await expect(page.locator("#count-doubles")).to_have_text("0")
                    await expect(answer(page)).to_have_attribute("data-entries", "401")
                    await expect(answer(page).locator(".scrub-label.resume")).not_to_have_count(0)
                    assert second.stop() == 0


async def test_a_server_that_is_started_again_without_its_tapes_says_so(
    page: Page, tmp_path: Path
) -> None:
    """What was typed stays on the page, with a way to ask again."""
    with running(tmp_path / "log1") as first:
        async with Proxy(first.url) as proxy:
            await open_chat(page, proxy.url, max_length=LONG)
            await ask_long(page)
            await expect_entries(page, 5)
            os.killpg(first.process.pid, signal.SIGKILL)
            first.process.wait(patience(30))
            with running(tmp_path / "log2") as second:
                proxy.lead_to(second.url)
                notice = answer(page).locator(".notice")
                await expect(notice).to_contain_text(
                    "The server no longer has this tape", timeout=patience(20_000)
                )
                assert await answer(page).locator(".body").text_content()
                await answer(page).get_by_role("button", name="Ask again", exact=True).click()
                await expect_entries(page, 5)
                await page.click("#stop")
                await expect_whole(page, second.url)
                assert second.stop() == 0


@pytest.mark.long
async def test_a_beginning_that_is_kept_no_longer_is_told_of(page: Page, tmp_path: Path) -> None:
    """A browser that comes late by the link reads the rest, and says what is missing."""
    with running(tmp_path / "log", "--max-tape-memory", "20KiB") as own:
        await open_chat(page, own.url, max_length=300)
        await ask_long(page)
        await expect_state(page, "done")
        tape = await answer(page).get_attribute("data-tape")
        whole = (await stored(page))[1]["content"]
        late = await page.context.new_page()
        await late.goto(f"{own.url}/?tape={tape}")
        shared = late.locator("#shared-answer .answer")
        await expect(shared).to_have_attribute("data-state", "done", timeout=patience(20_000))
        await expect(shared.locator(".notice")).to_contain_text("had dropped entries 1 to ")
        rest = await shared.locator(".body").text_content()
        assert rest
        assert len(rest) < len(whole)
        assert own.stop() == 0


@pytest.mark.long
async def test_a_proxy_that_answers_for_a_server_out_of_reach_is_asked_again(
    page: Page, server: RunningServer
) -> None:
    async def bad_gateway(route: Route) -> None:
        await route.fulfill(status=502, body="Bad Gateway")

    async with Proxy(server.url) as proxy:
        await open_chat(page, proxy.url, max_length=400)
        await ask_long(page)
        await expect_entries(page, 3)
        await page.route(TAPE, bad_gateway)
        proxy.cut()
        await expect(answer(page).locator(".notice")).to_contain_text("Connection lost")
        async with page.expect_response(lambda response: response.status == 502):
            pass
        await page.unroute(TAPE)
        await expect_whole(page, server.url)


async def type_and_lose(page: Page, proxy: Proxy) -> None:
    """An answer types, and the server is out of reach."""
    await open_chat(page, proxy.url, max_length=LONG)
    await ask_long(page)
    await expect_entries(page, 3)
    proxy.refuses = True
    proxy.cut()
    await expect(answer(page).locator(".notice")).to_contain_text("Connection lost")


async def test_stop_works_while_the_server_is_out_of_reach(
    page: Page, server: RunningServer
) -> None:
    async with Proxy(server.url) as proxy:
        await type_and_lose(page, proxy)
        await page.click("#stop")
        await expect(answer(page).locator(".notice")).to_contain_text("The page stopped reading.")
        await expect(page.locator("#stop")).to_be_hidden()


async def test_stop_does_not_wait_for_the_next_try(page: Page, server: RunningServer) -> None:
    """The server is back before the page would have looked again."""
    async with Proxy(server.url) as proxy:
        await type_and_lose(page, proxy)
        proxy.refuses = False
        await page.click("#stop")
        await expect(answer(page).locator(".notice")).to_have_text("Stopped")
        await expect_whole(page, server.url)


@pytest.mark.long
async def test_a_fork_at_every_place_of_a_greedy_answer_is_the_answer(
    page: Page, server: RunningServer
) -> None:
    """Each by the scrubber and its button. The page gives a fork room for as many new tokens."""
    await open_chat(page, server.url, max_length=60, temperature=0)
    await ask_long(page)
    await expect_whole(page, server.url)
    first = await token_ids(server.url, (await stored(page))[1]["tape"])
    assert len(first) == 60
    for place in range(1, 60):
        await answer(page).locator(".scrub-input").fill(str(place))
        await answer(page).locator("[data-act=fork]").click()
        count = place + 1
        await expect(answer(page).locator(".branch-count")).to_have_text(f"{count}/{count}")
        await expect_whole(page, server.url)
        fork = (await stored(page))[-1]
        assert fork["forkedAt"] == place
        there = await snapshot(server.url, fork["tape"])
        assert there["forked_at"] == place
        assert (await token_ids(server.url, fork["tape"]))[:60] == first, place
