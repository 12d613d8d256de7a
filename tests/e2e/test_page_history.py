"""Chats are kept: over reloads and versions, with branches, in files."""

import json
from pathlib import Path
from typing import Any

from playwright.async_api import Page, expect

from tests.e2e.chat_page import (
    QUESTION,
    answer,
    answered,
    expect_state,
    open_chat,
    stored,
)
from tests.server import RunningServer

NEWER_DATABASE = """
() => new Promise((resolve) => {
  const request = indexedDB.open("tickertape", 99);
  request.onupgradeneeded = () => request.result
    .createObjectStore("conversations", { keyPath: "id" }).put({ id: "precious" });
  request.onsuccess = () => { request.result.close(); resolve(); };
})
"""
READ_NEWER = """
() => new Promise((resolve) => {
  const request = indexedDB.open("tickertape");
  request.onsuccess = () => {
    const { version } = request.result;
    const all = request.result.transaction("conversations").objectStore("conversations").getAll();
    all.onsuccess = () => { request.result.close(); resolve([version, all.result]); };
  };
})
"""


def rows(page: Page) -> Any:
    return page.locator("#chats li")


async def menu(page: Page, title: str, item: str) -> None:
    await page.locator("#chats").get_by_role("button", name=f"More about {title}").click()
    await page.locator("#chats").get_by_role("button", name=item).click()


async def test_a_chat_outlives_a_reload_with_its_tape(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=12)
    await answered(page)
    before = await answer(page).locator(".body").text_content()
    await page.reload()
    await expect(answer(page).locator(".body")).to_have_text(before or "")
    await expect(page.locator("#messages .question .bubble")).to_have_text(QUESTION)
    await expect(answer(page).locator(".cell").first).to_be_visible()
    await expect(page.locator("#count-gaps")).to_have_text("0")
    await page.click("#new-chat")
    await expect(page.locator("#messages .answer")).to_have_count(0)
    await page.locator(".chat-open").click()
    await expect(answer(page).locator(".body")).to_have_text(before or "")


async def test_search_rename_delete(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=5)
    await answered(page, "Tell me about gulls")
    await page.click("#new-chat")
    await answered(page, "Tell me about lighthouses")
    await expect(rows(page)).to_have_count(2)

    await page.fill("#chat-search", "gulls")
    await expect(rows(page)).to_have_count(1)
    await menu(page, "Tell me about gulls", "Rename")
    await page.keyboard.type("Birds")
    await page.keyboard.press("Enter")
    await page.fill("#chat-search", "")
    await expect(page.locator(".chat-title", has_text="Birds")).to_be_visible()

    await menu(page, "Birds", "Delete")
    await expect(rows(page)).to_have_count(2)
    await page.get_by_role("button", name="Delete for good").click()
    await expect(rows(page)).to_have_count(1)
    await page.reload()
    await expect(rows(page)).to_have_count(1)
    assert {one["content"] for one in await stored(page)}.isdisjoint({"Tell me about gulls"})


async def test_branches_of_answers_and_questions(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=8)
    await answered(page)
    first = await answer(page).locator(".body").text_content()
    await answer(page).get_by_role("button", name="Ask again (another answer)").click()
    await expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    await expect_state(page, "done")
    await answer(page).get_by_role("button", name="Previous branch").click()
    await expect(answer(page).locator(".branch-count")).to_have_text("1/2")
    await expect(answer(page).locator(".body")).to_have_text(first or "")

    await page.get_by_role("button", name="Edit (makes a branch)").click()
    await page.keyboard.press("ControlOrMeta+a")
    await page.keyboard.type("What is the capital of Italy?")
    await page.keyboard.press("Enter")
    question = page.locator("#messages .question")
    await expect(question.locator(".branch-count")).to_have_text("2/2")
    await expect_state(page, "done")
    await page.reload()
    await expect(question.locator(".bubble")).to_have_text("What is the capital of Italy?")
    await question.get_by_role("button", name="Previous branch").click()
    await expect(question.locator(".bubble")).to_have_text(QUESTION)
    await expect(answer(page).locator(".branch-count")).to_have_text("1/2")
    assert len(await stored(page)) == 5


async def test_export_and_import(page: Page, server: RunningServer, tmp_path: Path) -> None:
    await open_chat(page, server.url, max_length=8)
    await answered(page)
    content = (await stored(page))[1]["content"]
    async with page.expect_download() as markdown:
        await menu(page, QUESTION, "Export as Markdown")
    await (await markdown.value).save_as(tmp_path / "chat.md")
    assert (tmp_path / "chat.md").read_text() == (
        f"# {QUESTION}\n\n## You\n\n{QUESTION}\n\n## Answer\n\n{content}\n"
    )
    async with page.expect_download() as everything:
        await page.click("#export-all")
    await (await everything.value).save_as(tmp_path / "chats.json")

    await page.set_input_files("#import-file", tmp_path / "chats.json")
    await expect(rows(page)).to_have_count(2)
    assert [one["content"] for one in await stored(page)].count(content) == 2

    newer = json.loads((tmp_path / "chats.json").read_text()) | {"schema": 99}
    for name, text in {"newer.json": json.dumps(newer), "other.json": "{}", "no.json": "x"}.items():
        (tmp_path / name).write_text(text)
        await page.set_input_files("#import-file", tmp_path / name)
        await expect(page.locator("#history-problem")).to_contain_text("Nothing was imported")
        await expect(rows(page)).to_have_count(2)


async def test_a_history_of_a_newer_version_is_left_untouched(
    page: Page, server: RunningServer
) -> None:
    await page.goto(f"{server.url}/health")
    await page.evaluate(NEWER_DATABASE)
    await open_chat(page, server.url, max_length=5)
    await expect(page.locator("#history-problem")).to_contain_text("newer version")
    await answered(page)
    await expect(rows(page)).to_have_count(1)
    assert await page.evaluate(READ_NEWER) == [99, [{"id": "precious"}]]


async def test_two_tabs_have_one_history(page: Page, server: RunningServer) -> None:
    other = await page.context.new_page()
    await open_chat(other, server.url)
    await open_chat(page, server.url, max_length=5)
    await answered(page)
    await expect(rows(other)).to_have_count(1)
    await other.locator(".chat-open").click()
    await expect(other.locator("#messages .question .bubble")).to_have_text(QUESTION)
    await other.close()
