"""The tape under an answer: cut, pause, second readers, rewinding, forks, and the wire."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Request, expect

from tests.e2e.chat_page import (
    LONG,
    QUESTION,
    answer,
    answered,
    ask,
    ask_long,
    expect_entries,
    expect_state,
    expect_whole,
    open_chat,
    stored,
)
from tests.proxy import Proxy
from tests.server import RunningServer, running
from tests.speed import patience

TAPE = re.compile(r"/v1/tapes/[A-Za-z0-9_-]{22}$")


def act(page: Page, name: str) -> Any:
    return answer(page).locator(f"[data-act={name}]")


async def test_cut_five_times_and_nothing_is_lost(page: Page, server: RunningServer) -> None:
    resumed: list[str] = []

    def note(request: Request) -> None:
        if TAPE.search(request.url) and "last-event-id" in request.headers:
            resumed.append(request.headers["last-event-id"])

    page.on("request", note)
    await open_chat(page, server.url, max_length=300)
    await ask_long(page)
    seen = 0
    for number, place in enumerate((3, 25, 50, 75, 100), 1):
        await expect_entries(page, max(place, seen + 1))  # two cuts at one entry are one mark
        await act(page, "cut").click()
        await expect(answer(page).locator(".scrub-label.leave")).to_have_count(number)
        seen = int(await answer(page).get_attribute("data-entries") or 0)
        await expect(act(page, "cut")).to_be_enabled(timeout=patience(10_000))
    await expect_whole(page, server.url)
    assert len(resumed) == 5
    await expect(page.locator("#count-connections")).to_have_text("6")
    await expect(page.locator("#count-gaps")).to_have_text("0")
    await expect(page.locator("#count-doubles")).to_have_text("0")
    await expect(answer(page).locator(".scrub-label.leave")).to_have_count(5)
    await expect(answer(page).locator(".scrub-label.resume")).to_have_count(5)


async def test_pause_makes_the_tape_wait(page: Page, server: RunningServer) -> None:
    before = server.health()["paused"]
    await open_chat(page, server.url, max_length=60)
    await ask_long(page)
    await expect_entries(page, 5)
    await act(page, "pause").click()
    await expect(answer(page).locator(".notice")).to_contain_text("Paused after entry")
    await expect(page.locator(".wire-line.note")).to_contain_text("The page closed the connection")
    await server.health_becomes(20, running=0, paused=before + 1)
    await act(page, "pause").click()
    await expect_whole(page, server.url)


async def test_another_browser_joins_by_the_link(
    page: Page, browser: Browser, server: RunningServer
) -> None:
    await open_chat(page, server.url, max_length=LONG)
    await ask_long(page)
    await expect_entries(page, 5)
    await act(page, "second").click()
    second = page.get_by_role("region", name="Second reader")
    await expect(second.locator("canvas")).to_be_visible()
    link = await second.get_by_role("link").get_attribute("href")
    assert link
    context = await browser.new_context()
    other = await context.new_page()
    await other.goto(link)
    shared = other.locator("#shared-answer .answer")
    await expect(shared).to_have_attribute("data-state", "running")
    await expect(answer(page).locator(".scrub-label.reader")).to_have_count(2)
    await page.click("#stop")
    await expect_whole(page, server.url)
    await expect(shared).to_have_attribute("data-state", "done")
    mine = await answer(page).locator(".body").text_content()
    assert await shared.locator(".body").text_content() == mine
    await expect(second.locator(".note").first).to_contain_text("gaps 0 · duplicates 0 · ended")
    await context.close()


async def test_rewind_and_a_token(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=20)
    await ask_long(page)
    await expect_state(page, "done")
    content = (await stored(page))[1]["content"]
    await answer(page).locator(".scrub-input").focus()
    await page.keyboard.press("Home")
    await page.keyboard.press("ArrowRight")
    await expect(answer(page).locator(".notice")).to_have_text("Rewound to entry 1 of 20.")
    shown = await answer(page).locator(".body").text_content()
    assert shown is not None
    assert len(shown) < len(content)
    await answer(page).locator(".cell[data-n='2']").click()
    card = answer(page).locator(".token-card")
    await expect(card).to_contain_text("token id")
    await expect(card.locator("tbody tr")).to_have_count(5)
    await page.keyboard.press("Escape")
    await expect(card).to_have_count(0)
    await act(page, "replay").click()
    await expect(answer(page).locator(".notice")).not_to_contain_text("Rewound")
    await act(page, "heat").click()
    tokens = answer(page).locator(".body .token")
    await expect(tokens).to_have_count(20)
    assert "".join(await tokens.all_text_contents()) == content


async def test_fork_with_an_alternative_token(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=20, temperature=0)
    await ask_long(page)
    await expect_state(page, "done")
    await answer(page).locator(".cell[data-n='6']").click()
    async with page.expect_request("**/fork") as request:
        await answer(page).get_by_role("button", name="Use this token").first.click()
    sent = (await request.value).post_data_json
    assert sent["after"] == 5
    await expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    await expect_whole(page, server.url)
    _, before, after = await stored(page)
    assert after["parentTape"] == before["tape"]
    assert after["forkedAt"] == 5
    sixth = answer(page).locator(".cell[data-n='6']")
    await sixth.scroll_into_view_if_needed()
    await sixth.click()
    await expect(answer(page).locator(".token-facts")).to_contain_text(f"id {sent['token_id']} ")


async def test_go_on_differently_from_a_place(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=20)
    await ask_long(page)
    await expect_state(page, "done")
    await act(page, "fork").click()
    await expect(answer(page).locator(".tape-hint")).to_contain_text("Drag the line back")
    await answer(page).locator(".scrub-input").focus()
    for _ in range(10):
        await page.keyboard.press("ArrowLeft")
    await act(page, "fork").click()
    await expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    await expect_whole(page, server.url)
    _, before, after = await stored(page)
    assert after["forkedAt"] == 10
    assert after["content"][:10] == before["content"][:10]


async def test_the_request_as_code(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=5)
    await answered(page)
    await act(page, "code").click()
    dialog = page.get_by_role("dialog")
    tape = await answer(page).get_attribute("data-tape")
    await expect(dialog.locator("code")).to_contain_text(f"Last-Event-ID: {tape}:5")
    for name, said in {"Python": "import httpx", "JavaScript": "EventSource"}.items():
        await dialog.get_by_role("button", name=name, exact=True).click()
        await expect(dialog.locator("code")).to_contain_text(said)


async def test_reload_while_it_types(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=120)
    await ask_long(page)
    await expect_entries(page, 5)
    await page.reload()
    await expect_whole(page, server.url)
    await expect(page.locator("#messages .answer")).to_have_count(1)


async def test_the_connection_is_lost_for_a_while(page: Page, server: RunningServer) -> None:
    async with Proxy(server.url) as proxy:
        await open_chat(page, proxy.url, max_length=400)
        await ask_long(page)
        await expect_entries(page, 3)
        for _ in range(3):
            proxy.refuses = True
            proxy.cut()
            await expect(answer(page).locator(".notice")).to_contain_text("Connection lost")
            proxy.refuses = False
            await expect(answer(page).locator(".notice")).not_to_contain_text("Connection lost")
        await expect_whole(page, server.url)


async def test_entries_that_come_again_are_counted_and_not_typed_again(
    page: Page, server: RunningServer
) -> None:
    """Our server repeats none: connections that are written here do."""
    frames = [
        f'id: T:{n}\nevent: token\ndata: {{"text":"{n} ","token_ids":[0],"index":0}}\n\n'
        for n in range(1, 6)
    ]
    end = 'id: T:6\nevent: done\ndata: {"finish_reason":"stop"}\n\n'
    connections = iter(["".join(frames[:3]), "".join([*frames, end])])
    await open_chat(page, server.url, max_length=1)
    await page.route(
        TAPE,
        lambda route: route.fulfill(content_type="text/event-stream", body=next(connections)),
    )
    await answered(page)
    assert (await stored(page))[1]["content"] == "1 2 3 4 5 "
    await expect(page.locator("#count-doubles")).to_have_text("3")


async def test_a_tape_that_is_gone_is_told_of(page: Page, tmp_path: Path) -> None:
    with running(tmp_path / "log", "--tape-ttl", "0.1") as own:
        await open_chat(page, own.url, max_length=20)
        await ask_long(page)
        await expect_state(page, "done")
        await own.health_becomes(10, tapes=0)
        await answer(page).locator(".cell[data-n='6']").click()
        await answer(page).get_by_role("button", name="Use this token").first.click()
        await expect(answer(page).locator(".notice")).to_contain_text("no such tape")
        await answer(page).get_by_role("button", name="Previous branch").click()
        await expect(answer(page).locator(".notice")).to_contain_text("Stopped at the limit")
        assert own.stop() == 0


@pytest.mark.long
async def test_the_engine_dies_while_it_types_and_the_text_goes_on(
    page: Page, tmp_path: Path
) -> None:
    with running(tmp_path / "log", "--demo") as own:
        await open_chat(page, own.url, max_length=300)
        await ask_long(page)
        await expect_entries(page, 20)
        await act(page, "kill").click()
        await expect_whole(page, own.url)
        await expect(page.locator("#count-engines")).to_have_text("2")
        await expect(answer(page).locator(".scrub-label.engine")).to_have_count(1)
        await ask_long(page, "And again?")
        await expect_entries(page, 20)
        os.kill(own.health()["engine_pid"], signal.SIGKILL)
        await expect_whole(page, own.url)
        assert own.stop() == 0


async def test_a_wrong_key_is_told_apart_from_none(page: Page, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open sesame\n")
    with running(tmp_path / "log", "--api-key-file", str(keys)) as locked:
        await open_chat(page, locked.url)
        problem = page.locator("#key-problem")
        await expect(problem).to_contain_text("wants an API key")
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type("close sesame")
        await page.keyboard.press("Enter")
        await expect(problem).to_contain_text("does not know this API key")
        await page.fill("#key", "open sesame")
        await page.keyboard.press("Enter")
        await expect(page.locator("#key-field")).to_be_hidden()
        await ask(page, QUESTION)
        await expect_whole_with(page)
        assert locked.stop() == 0


async def expect_whole_with(page: Page) -> None:
    await expect_state(page, "done")
    assert (await stored(page))[1]["content"]
