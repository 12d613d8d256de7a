"""What can be done with the messages of a chat: continue, edit, delete, and find the end again."""

from playwright.async_api import Page, expect

from tests.e2e.chat_page import (
    LONG,
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


async def test_an_answer_at_its_limit_is_continued_in_its_place(
    page: Page, server: RunningServer
) -> None:
    await open_chat(page, server.url, max_length=20)
    await ask_long(page)
    await expect_state(page, "done")
    before = (await stored(page))[1]
    await answer(page).get_by_role("button", name="Continue", exact=True).click()
    await expect(answer(page).locator(".notice")).to_have_text("Stopped at the limit of 40 tokens.")
    await expect_whole(page, server.url)
    question, after = await stored(page)
    assert after["id"] == before["id"]
    assert after["parentTape"] == before["tape"] != after["tape"]
    assert after["content"].startswith(before["content"])
    await page.reload()
    await expect(answer(page).locator(".notice")).to_contain_text("40 tokens")
    assert question["role"] == "user"


async def test_an_answer_that_cannot_be_continued_stays(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=20)
    await ask_long(page)
    await expect_state(page, "done")
    before = await stored(page)
    await page.route(
        "**/fork",
        lambda route: route.fulfill(status=404, json={"error": {"message": "no such tape"}}),
    )
    await answer(page).get_by_role("button", name="Continue", exact=True).click()
    await expect(answer(page).locator(".notice")).to_contain_text("no such tape")
    after = await stored(page)
    assert [one["content"] for one in after] == [one["content"] for one in before]
    assert after[1]["tape"] == before[1]["tape"]
    await expect(answer(page)).to_have_attribute("data-state", "done")


async def test_an_edited_answer_is_what_the_model_hears(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=10)
    await answered(page)
    await answer(page).get_by_role("button", name="Edit the answer (makes a branch)").click()
    await page.get_by_role("textbox", name="Edit the answer").fill("Paris, of course.")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    await expect(answer(page).locator(".notice")).to_have_text("Edited by you")
    async with page.expect_request("**/v1/tapes") as request:
        await answered(page, "Are you sure?")
    sent = (await request.value).post_data_json["messages"]
    assert sent[1] == {"role": "assistant", "content": "Paris, of course."}
    await page.reload()
    await expect(page.locator("#messages .answer").first).to_contain_text("Paris, of course.")


async def test_what_is_deleted_is_gone_with_what_follows(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=5)
    await answered(page)
    await answered(page, "And of Italy?")
    second = page.locator("#messages .question").last
    await second.get_by_role("button", name="Delete", exact=True).click()
    await expect(second).to_contain_text("Delete this message and 1 below it?")
    await second.get_by_role("button", name="Keep").click()
    await expect(page.locator("#messages article")).to_have_count(4)
    await second.get_by_role("button", name="Delete", exact=True).click()
    await second.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.locator("#messages article")).to_have_count(2)
    await page.reload()
    await expect(page.locator("#messages article")).to_have_count(2)
    assert len(await stored(page)) == 2
    first = page.locator("#messages .question").first
    await first.get_by_role("button", name="Delete", exact=True).click()
    await first.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.locator("#welcome")).to_be_visible()
    await expect(page.locator("#chats li")).to_have_count(0)
    assert await stored(page) == []


async def test_an_answer_that_runs_stays_deleted(page: Page, server: RunningServer) -> None:
    """And its tape is cancelled."""
    await open_chat(page, server.url, max_length=LONG)
    await ask_long(page)
    await expect_entries(page, 5)
    async with page.expect_request(lambda request: request.method == "DELETE"):
        await answer(page).get_by_role("button", name="Delete", exact=True).click()
        await answer(page).get_by_role("button", name="Delete", exact=True).click()
    await server.health_becomes(10, running=0)
    await expect(page.locator("#messages .answer")).to_have_count(0)
    assert [one["role"] for one in await stored(page)] == ["user"]


async def test_the_newest_words_are_one_press_away(page: Page, server: RunningServer) -> None:
    await page.set_viewport_size({"width": 1280, "height": 420})
    await open_chat(page, server.url, max_length=LONG)
    await ask_long(page)
    to_end = page.locator("#to-end")
    await expect_entries(page, 60)
    await expect(to_end).to_be_hidden()
    await page.locator("#chat-scroll").hover()
    await page.mouse.wheel(0, -2000)
    await expect(to_end).to_be_visible()
    await to_end.click()
    await expect(to_end).to_be_hidden()
    await page.click("#stop")
    await expect_state(page, "done")


async def test_a_system_prompt_belongs_to_its_chat(page: Page, server: RunningServer) -> None:
    await open_chat(page, server.url, max_length=5)
    await answered(page)
    await page.click("#new-chat")
    await page.click("#show-settings")
    await page.fill("#system", "Talk like a pirate.")
    await ask(page, "Who are you?")
    await expect_state(page, "done")
    await expect(page.locator(".system-note")).to_have_text("System prompt: Talk like a pirate.")
    await page.locator("#chats .chat-open").last.click()
    await expect(page.locator("#system")).to_have_value("")
    await expect(page.locator(".system-note")).to_be_hidden()
    await set_field(page, "temperature", "0.5")
    await page.click("#new-chat")
    await expect(page.locator("#system")).to_have_value("Talk like a pirate.")


async def test_the_strip_shows_the_end_when_it_opens(page: Page, server: RunningServer) -> None:
    """And more of its beginning where somebody scrolls."""
    await open_chat(page, server.url, max_length=150)
    await ask_long(page)
    await expect_state(page, "done")
    await page.reload()
    strip = answer(page).locator(".strip-track")
    await expect(strip.locator(".terminal")).to_be_in_viewport()
    for _ in range(8):
        await strip.evaluate("track => { track.scrollLeft = 0; }")
    await expect(strip.locator(".cell[data-n='1']")).to_be_in_viewport()
    await strip.locator(".cell[data-n='1']").click()
    opened = strip.locator("[aria-expanded=true]")
    await expect(opened).to_have_attribute("data-n", "1")
    await page.keyboard.press("Escape")
    await expect(opened).to_have_count(0)
