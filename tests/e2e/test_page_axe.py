"""axe finds no violation on any page, in any state, in either theme."""

from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.chat_page import FAKE_TAPE, answer, ask, expect_state, open_chat
from tests.e2e.test_dash import violations
from tests.e2e.test_page_markdown import TEXT, pieces
from tests.server import RunningServer

schemes = pytest.mark.parametrize("scheme", ["light", "dark"])


@schemes
async def test_a_chat_in_every_state(page: Page, server: RunningServer, scheme: Any) -> None:
    await page.emulate_media(color_scheme=scheme)
    await open_chat(page, server.url)
    assert await violations(page) == [], "empty"
    await page.evaluate(FAKE_TAPE, {"tokens": pieces(TEXT), "perSecond": 3000})
    await ask(page, "Show me")
    await expect_state(page, "done")
    await expect(answer(page).locator(".hl-keyword").first).to_be_attached()
    assert await violations(page) == [], "done"
    await answer(page).locator(".cell[data-n]").last.click()
    await answer(page).locator("[data-act=second]").click()
    await answer(page).locator("[data-act=heat]").click()
    await page.get_by_role("button", name="More about Show me").click()
    assert await violations(page) == [], "a token, a second reader, colours, a menu"
    await page.click("#show-settings")
    for fold in await page.locator("#settings details").all():
        await fold.evaluate("fold => { fold.open = true }")
    await page.get_by_role("button", name="Edit (makes a branch)").click()
    for shown in ("#key-field", "#key-problem", "#history-problem", "#no-chat"):
        await page.locator(shown).evaluate("element => { element.hidden = false }")
    assert await violations(page) == [], "settings, an edit, a key"
    await answer(page).locator("[data-act=code]").click()
    assert await violations(page) == [], "code"
    await page.keyboard.press("Escape")
    await page.locator("#theme").focus()
    await page.keyboard.press("?")
    assert await violations(page) == [], "the list of keys"


@schemes
async def test_the_other_pages(page: Page, server: RunningServer, scheme: Any) -> None:
    await page.emulate_media(color_scheme=scheme)
    for path, shown in {
        "/#complete": "#prompt-text",
        "/#compare": "#compare-text",
        f"/?tape={'A' * 22}": "#shared-answer .notice",
        "/nothing": ".example",
        "/docs#create_tape": "#create_tape .try",
    }.items():
        await page.goto(server.url + path)
        await expect(page.locator(shown).first).to_be_visible()
        assert await violations(page) == [], path


@schemes
async def test_a_phone(page: Page, server: RunningServer, scheme: Any) -> None:
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": 390, "height": 844})
    await open_chat(page, server.url)
    await page.click("#show-chats")
    assert await violations(page) == [], "chats"
    await page.keyboard.press("Escape")
    await page.click("#show-wire")
    assert await violations(page) == [], "on the wire"
