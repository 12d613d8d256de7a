"""Everyday questions, typed into the page with its defaults."""

import pytest
from playwright.async_api import Page, expect

from tests.e2e.chat_page import answer, ask, open_chat, set_field, stored
from tests.e2e.test_examples import QUESTIONS
from tests.server import RunningServer
from tests.speed import patience

SEEDS = 5


@pytest.mark.long
async def test_sixty_answers_on_the_page_are_not_empty_and_end(
    page: Page, server: RunningServer
) -> None:
    """Every question in a new chat. An answer that runs to the limit is noise, or circles."""
    await open_chat(page, server.url)
    for seed in range(SEEDS):
        await set_field(page, "seed", str(seed))
        for question in QUESTIONS:
            await page.click("#new-chat")
            await ask(page, question)
            await expect(answer(page)).to_have_attribute(
                "data-state", "done", timeout=patience(60_000)
            )
    messages = {one["id"]: one for one in await stored(page)}
    answers = [one for one in messages.values() if one["role"] == "assistant"]
    asked = [(messages[one["parent"]]["content"], one) for one in answers]
    empty = [question for question, one in asked if not one["content"].strip()]
    endless = [(question, one["content"]) for question, one in asked if one["finish"] != "stop"]
    lengths = sorted(one["usage"]["completion_tokens"] for one in answers)
    print(f"{len(asked)} answers, {len(empty)} empty, {len(endless)} without an end")
    print(
        f"tokens of an answer: {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}"
    )
    assert len(asked) == SEEDS * len(QUESTIONS)
    assert (empty, endless) == ([], [])
