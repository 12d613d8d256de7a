"""The page, driven as a person would: in a real browser, against a real server."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Page, Request, expect

from tests.e2e.chat_page import (
    LONG,
    QUESTION,
    Server,
    answer,
    answered,
    ask,
    ask_long,
    expect_entries,
    expect_state,
    expect_whole,
    open_chat,
    set_field,
    stored,
)
from tests.server import RunningServer
from tests.speed import Promised, patience

PROMPT = "Once upon a time"

# Notes every visible length of the newest answer until the page leaves its typing state.
RECORD_LENGTHS = """
() => {
  window.lengths = [];
  const observer = new MutationObserver(() => {
    const card = [...document.querySelectorAll("#messages .answer")].at(-1);
    const length = card?.querySelector(".body").textContent.length ?? 0;
    const isNew = length > (window.lengths.at(-1) ?? 0);
    if (isNew && card.dataset.state === "running") window.lengths.push(length);
  });
  observer.observe(document.body, { subtree: true, childList: true, characterData: true });
}
"""

COLORS = """
() => {
  const { backgroundColor, color } = getComputedStyle(document.body);
  return { backgroundColor, color };
}
"""

# Of a cumulative layout shift, of which 0.1 is good: a figure that grows by a digit is less.
UNSEEN = 0.005

SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const { value, sources } of list.getEntries()) {
    window.shifts.push([value, ...sources.map(({ node, previousRect, currentRect }) => (
      [node?.id || node?.className || node?.textContent, previousRect, currentRect]
    ))]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


async def complete(page: Page, server: Server) -> None:
    """Goes on with a raw text, in the tab Complete."""
    await page.goto(f"{server.url}/#complete")
    await expect(page.locator("#complete-send")).to_be_enabled()
    await page.fill("#prompt-text", PROMPT)
    await page.click("#complete-send")
    await expect(page.locator("#completion .answer")).to_have_attribute(
        "data-state", "done", timeout=patience(60_000)
    )


async def running(server: Server) -> int:
    async with httpx.AsyncClient() as client:
        health: dict[str, Any] = (await client.get(f"{server.url}/health")).json()
    return int(health["running"])


async def idle(server: Server) -> None:
    """Return when the engine runs nothing. What it ran before may have ended by itself."""
    async with asyncio.timeout(patience(1)):
        while await running(server):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_first_visit(page: Page, server: RunningServer) -> None:
    """Three examples, one sentence on what a tape is, and nothing moves at first paint."""
    await page.add_init_script(SHIFTS)
    await open_chat(page, server.url)
    await expect(page.locator(".example")).to_have_count(3)
    await expect(page.locator("#welcome")).to_contain_text("tape")
    shifts = await page.evaluate("window.shifts")
    assert sum(value for value, *_ in shifts) < UNSEEN, shifts
    await page.locator(".example").first.click()
    await expect_state(page, "done")
    await expect(page.locator("#welcome")).to_be_hidden()


async def test_text_grows_step_by_step(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=40)
    await page.evaluate(RECORD_LENGTHS)
    await ask_long(page)
    await expect_state(page, "done")
    lengths: list[int] = await page.evaluate("window.lengths")
    assert len(lengths) >= 5
    assert lengths == sorted(set(lengths))
    await expect_whole(page, server.url)


async def test_a_conversation_goes_on(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=10)
    await answered(page)
    async with page.expect_request("**/v1/tapes") as request:
        await answered(page, "And of Italy?")
    sent = (await request.value).post_data_json
    question, first, *_ = await stored(page)
    assert sent["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": "And of Italy?"},
    ]
    assert question["content"] == QUESTION


async def test_raw_completion(page: Page, server: RunningServer) -> None:
    async with page.expect_request("**/v1/tapes") as request:
        await complete(page, server)
    assert (await request.value).post_data_json["prompt"] == PROMPT
    text = await page.locator("#completion .body").text_content()
    assert text
    await page.reload()
    await expect(page.locator("#completion .body")).to_have_text(text)


async def test_compare_asks_with_two_settings(page: Page, server: RunningServer) -> None:
    await page.goto(f"{server.url}/#compare")
    await expect(page.locator("#compare-send")).to_be_enabled()
    await set_field(page, "max_length", "10")
    sent: list[Any] = []
    page.on("request", lambda one: sent.append(one.post_data_json) if one.post_data else None)
    await page.click("#compare-send")
    for side in range(2):
        await expect(page.locator(".side .answer").nth(side)).to_have_attribute(
            "data-state", "done", timeout=patience(60_000)
        )
    one, other = [body for body in sent if "messages" in body]
    assert (one["temperature"], other["temperature"]) == (0, 1)
    assert one["messages"] == other["messages"]


async def test_stop_frees_the_engine_within_a_second(
    page: Page, server: RunningServer, promised: Promised
) -> None:
    await open_chat(page, server.url, max_length=LONG)
    await ask_long(page)
    await expect_entries(page, 5)
    assert await running(server) == 1

    clicked = time.perf_counter()
    await page.click("#stop")
    await idle(server)
    promised("stopped", time.perf_counter() - clicked, 1)
    await expect_state(page, "done")
    await expect(answer(page).locator(".notice")).to_have_text("Stopped")
    await expect(page.locator("#prompt")).to_be_focused()


async def test_settings_become_the_request(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=20, top_k=40, top_p=0.9, min_p=0.1, seed=7)
    await set_field(page, "repetition_penalty", "1.1")
    await set_field(page, "stop", "one\ntwo")
    await set_field(page, "logit_bias", '{"42": -100}')
    await page.fill("#system", "Answer in one word.")
    async with page.expect_request("**/v1/tapes") as request:
        await answered(page)
    assert (await request.value).post_data_json == {
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": QUESTION},
        ],
        "max_length": 20,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop": ["one", "two"],
        "logit_bias": {"42": -100},
        "seed": 7,
        "logprobs": 5,
        "on_disconnect": "pause",
        "grace": 300,
    }
    await page.reload()
    await expect(page.locator("#set-max-length")).to_have_value("20")
    await expect(page.locator("#set-stop")).to_have_value("one\ntwo")


async def test_refused_value_is_explained_beside_its_field(
    page: Page, server: RunningServer
) -> None:
    await open_chat(page, server.url, temperature=-1, max_length=10)
    await ask(page)
    field, error = page.locator("#set-temperature"), page.locator("#set-temperature-error")
    await expect(error).to_contain_text("temperature")
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(field).to_be_focused()
    await field.fill("0.7")
    await expect(error).to_be_hidden()
    await answer(page).get_by_role("button", name="Ask again (another answer)").click()
    await expect_state(page, "done")


async def test_a_schema_is_obeyed_and_a_broken_one_is_explained(
    page: Page, server: RunningServer
) -> None:
    await open_chat(page, server.url)
    await set_field(page, "schema", "{")
    await ask(page)
    await expect(page.locator("#set-schema-error")).to_contain_text("This is not JSON")
    await expect(page.locator("#prompt")).to_have_value(QUESTION)
    await set_field(
        page,
        "schema",
        '{"type": "object", "properties": {"city": {"enum": ["Paris"]}},'
        ' "required": ["city"], "additionalProperties": false}',
    )
    await answered(page)
    assert "".join((await stored(page))[-1]["content"].split()) == '{"city":"Paris"}'


async def test_an_empty_answer_says_why_and_what_to_do(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url)
    end = '{"finish_reason": "stop", "usage": {"completion_tokens": 1}, "timings": {}}'
    frames = (
        'id: T:1\nevent: token\ndata: {"text":"","token_ids":[2],"index":0}\n\n'
        f"id: T:2\nevent: done\ndata: {end}\n\n"
    )
    await page.route(
        "**/v1/tapes/*",
        lambda route: route.fulfill(content_type="text/event-stream", body=frames),
    )
    await answered(page)
    await expect(answer(page).locator(".notice")).to_contain_text("The answer is empty: the model")
    await page.unroute("**/v1/tapes/*")
    await answer(page).get_by_role("button", name="Ask again", exact=True).click()
    await expect(answer(page).locator(".branch-count")).to_have_text("2/2")


async def test_keyboard_alone(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=LONG)
    await page.locator("#theme").focus()
    await page.keyboard.press("/")
    await expect(page.locator("#prompt")).to_be_focused()
    await page.keyboard.type(QUESTION)
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("Please.")
    await page.keyboard.press("Enter")
    await expect_entries(page, 1)
    await page.keyboard.press("Escape")
    await expect_state(page, "done")
    await expect(page.locator("#announcer")).to_contain_text("Answer complete")
    assert (await stored(page))[0]["content"] == f"{QUESTION}\nPlease."
    await page.locator("#theme").focus()
    await page.keyboard.press("r")
    await expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    await page.keyboard.press("Escape")
    await expect_state(page, "done")
    await page.locator("#theme").focus()
    await page.keyboard.press("[")
    await expect(answer(page).locator(".branch-count")).to_have_text("1/2")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.locator("#theme").focus()
    await page.keyboard.press("n")
    await expect(page.locator("#welcome")).to_be_visible()
    await expect(page.locator("#prompt")).to_be_focused()


async def test_themes_differ_and_the_choice_is_kept(page: Page, server: RunningServer) -> None:
    await page.emulate_media(color_scheme="light")
    await open_chat(page, server.url)
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
    page: Page, server: RunningServer, width: int, height: int
) -> None:
    await page.set_viewport_size({"width": width, "height": height})
    await open_chat(page, server.url)
    await expect(page.locator("#sidebar")).to_be_hidden()
    await expect(page.locator("#panel")).to_be_hidden()
    await answered(page)
    await page.get_by_role("button", name="Tape of this answer").click()
    await expect(page.locator(".tape-panel .strip")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.click("#show-chats")
    await expect(page.locator("#chats li")).to_have_count(1)


async def test_console_stays_clean(page: Page, server: RunningServer) -> None:
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    await open_chat(page, server.url, max_length=20)
    await answered(page)
    assert problems == []


async def test_the_lamp_tells_that_the_server_is_gone(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url)
    await page.context.set_offline(True)
    await expect(page.locator("#server")).to_have_attribute("data-state", "unreachable")
    await expect(page.locator("#model")).to_have_text("the server is out of reach")
    await expect(page.locator("#generate")).to_be_disabled()
    await page.context.set_offline(False)
    await expect(page.locator("#generate")).to_be_enabled()


async def test_the_reference_renders_without_leaving_the_origin(
    page: Page, server: RunningServer
) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    await page.goto(f"{server.url}/docs#create_tape")
    await expect(page.locator("#create_tape .path")).to_have_text("/v1/tapes")
    await page.locator("#create_tape").get_by_role("button", name="Send").click()
    await expect(page.locator("#create_tape .try-output")).to_contain_text('"tape"')
    await page.fill("#filter", "tokenize")
    await expect(page.locator(".operation:visible")).to_have_count(2)
    home = urlsplit(server.url).netloc
    assert {urlsplit(url).netloc for url in asked} == {home}
    await page.get_by_role("link", name="Chat").click()
    await expect(page.locator("#prompt")).to_be_visible()


async def test_nothing_is_found_in_the_form_that_was_asked_for(
    page: Page, server: RunningServer
) -> None:
    response = await page.goto(f"{server.url}/nothing")
    assert response
    assert response.status == 404
    await page.get_by_role("link", name="Chat with the model").click()
    await expect(page.locator("#prompt")).to_be_visible()
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/nothing")).json()["error"]["type"] == "not_found_error"
        assert (await http.head("/")).status_code == 200
        icon = await http.get("/favicon.ico")
    assert icon.headers["Content-Type"] == "image/svg+xml"
