"""The page for chats as a person uses it: shared by the tests of the page."""

import asyncio
import json
from pathlib import Path
from typing import Any, Protocol

import httpx
from playwright.async_api import Locator, Page, Route, expect

from tests.speed import patience

QUESTION = "What is the capital of France?"
LONG = 4000  # more tokens than there is time for

MESSAGES = """
() => new Promise((resolve, reject) => {
  const request = indexedDB.open("tickertape");
  request.onerror = () => reject(request.error);
  request.onsuccess = () => {
    const all = request.result.transaction("messages").objectStore("messages").getAll();
    all.onsuccess = () => {
      request.result.close();
      resolve(all.result.sort((one, other) => one.created - other.created));
    };
  };
})
"""

FAKE_TAPE = (Path(__file__).parent / "fake_tape.js").read_text()


class Server(Protocol):
    url: str


def answer(page: Page) -> Locator:
    """The newest answer of the chat."""
    return page.locator("#messages .answer").last


async def open_chat(page: Page, url: str, **settings: str | int) -> None:
    """The page when it can be asked; `settings` by the fields' names."""
    await page.goto(url)
    await expect(page.locator("#generate")).to_be_enabled(timeout=patience(20_000))
    await expect(page.locator("html")).to_have_attribute("data-loaded", "true")
    for name, value in settings.items():
        await set_field(page, name, str(value))
    if settings and not await page.locator("#wire").is_visible():
        await page.click("#show-wire")


async def set_field(page: Page, name: str, value: str) -> None:
    if not await page.locator("#settings").is_visible():
        await page.click("#show-settings")
    field = page.locator(f"#set-{name.replace('_', '-')}")
    await field.evaluate("field => field.closest('details')?.setAttribute('open', '')")
    await field.fill(value)


async def ask(page: Page, text: str = QUESTION) -> None:
    await page.fill("#prompt", text)
    await page.keyboard.press("Enter")


async def ask_long(page: Page, text: str = QUESTION) -> None:
    """No early end of the text shall spoil a test."""

    async def to_the_full_length(route: Route) -> None:
        body = route.request.post_data_json | {"ignore_eos": True}
        await route.continue_(post_data=json.dumps(body))

    await page.route("**/v1/tapes", to_the_full_length)
    await ask(page, text)


async def expect_state(page: Page, state: str) -> None:
    await expect(answer(page)).to_have_attribute("data-state", state, timeout=patience(60_000))


async def expect_entries(page: Page, count: int) -> None:
    """Return when at least so many have come."""
    async with asyncio.timeout(patience(60)):
        while int(await answer(page).get_attribute("data-entries") or 0) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def answered(page: Page, text: str = QUESTION) -> None:
    await ask(page, text)
    await expect_state(page, "done")


async def stored(page: Page) -> list[dict[str, Any]]:
    """The messages of this browser's history, in the order in which they were made."""
    messages: list[dict[str, Any]] = await page.evaluate(MESSAGES)
    return messages


async def snapshot(url: str, tape: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=patience(30)) as http:
        reply = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    reply.raise_for_status()
    body: dict[str, Any] = reply.json()
    return body


async def expect_whole(page: Page, url: str) -> None:
    """The newest answer is the tape's text, no entry is missing, and none came twice."""
    await expect_state(page, "done")
    tape = await answer(page).get_attribute("data-tape")
    assert tape
    (message,) = [one for one in await stored(page) if one.get("tape") == tape]
    there = await snapshot(url, tape)
    assert message["content"] == there["generated_text"] != ""
    assert message["counters"]["entries"] == there["last_entry"]
    assert message["counters"]["gaps"] == message["counters"]["doubles"] == 0
