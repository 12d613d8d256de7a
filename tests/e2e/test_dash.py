"""The operations page, in a real browser, against real servers that have something to do."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.answers import Reading, read_into
from tests.app.guard.test_api_keys import bearer
from tests.e2e.conftest import SCREENSHOTS
from tests.proxy import Proxy
from tests.server import RunningServer, running
from tests.speed import patience
from tests.tiny import tiny_llama

AXE = Path(__file__).parents[1] / "clients" / "node" / "node_modules" / "axe-core" / "axe.min.js"
PROMPTS = ["Once upon a time", "The capital of France is", "A short list:", "Dear Sir,", "Water"]
LONG: dict[str, Any] = {"max_length": 3000, "ignore_eos": True, "on_disconnect": "abort"}
ENDLESS = LONG | {"max_length": 60_000}  # for a model that is very small
RUN_AXE = "async () => (await axe.run()).violations.map(({id, nodes}) => [id, nodes[0].html])"

running_rows = "#tapes tbody tr[data-state=running]"


@contextlib.asynccontextmanager
async def load(
    server: RunningServer, number: int = len(PROMPTS), body: dict[str, Any] = LONG
) -> AsyncIterator[list[Reading]]:
    """So many streams that are read, and go on until the block ends."""
    readings = [Reading() for _ in range(number)]
    async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
        tasks = [
            asyncio.create_task(read_into(reading, http, body | {"prompt": prompt}))
            for reading, prompt in zip(readings, PROMPTS, strict=False)
        ]
        await server.health_becomes(20, running=number)
        yield readings
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await server.health_becomes(20, running=0, paused=0)


async def open_dash(page: Page, url: str) -> None:
    await page.goto(f"{url}/dash")
    await expect(page.locator("#state")).to_contain_text("engine ready")


async def number_in(page: Page, selector: str) -> float:
    return float(await page.locator(selector).first.inner_text())


async def another_number(page: Page, selector: str, before: float) -> float:
    await expect(page.locator(selector).first).not_to_have_text(f"{before:g}")
    return await number_in(page, selector)


async def highest(page: Page, title: str) -> float:
    """What the table of the charts says of one of them."""
    await page.locator("#summary").evaluate("details => { details.open = true }")
    row = page.locator("#summary-rows tr", has_text=title)
    return float((await row.locator("td").last.inner_text()).split()[0])


async def picture(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


async def violations(page: Page) -> Any:
    await page.evaluate(AXE.read_text())
    return await page.evaluate(RUN_AXE)


async def test_figures_move_under_load(page: Page, server: RunningServer) -> None:
    await open_dash(page, server.url)
    # Tapes of other tests have a row for ten seconds after their end.
    await expect(page.locator("#no-tapes")).to_be_visible(timeout=patience(15_000))
    async with load(server):
        await expect(page.locator(running_rows)).to_have_count(len(PROMPTS))
        await expect(page.locator("#running")).to_have_text(str(len(PROMPTS)))
        tokens = await number_in(page, f"{running_rows} .tokens")
        for _ in range(2):
            more = await another_number(page, f"{running_rows} .tokens", tokens)
            assert more > tokens
            tokens = more
        for figure in ("rate", "ttft", "itl", "kv", "readers"):
            assert await number_in(page, f"#{figure}") > 0
        chart = page.locator(".plot").nth(1)
        await expect(chart).to_have_attribute(
            "aria-label", re.compile(f"^Sequences: running now {len(PROMPTS)}, from 0 to")
        )
        await picture(page, "dash-light")
        await page.emulate_media(color_scheme="dark")
        await another_number(page, f"{running_rows} .tokens", tokens)
        await picture(page, "dash-dark")
    await expect(page.locator("#tapes td.state", has_text="cancelled")).to_have_count(len(PROMPTS))
    await expect(page.locator("#running")).to_have_text("0")


async def test_cancel_ends_a_tape_and_leaves_the_focus_in_the_table(
    page: Page, server: RunningServer
) -> None:
    """By the keyboard: the rows that are drawn anew each second do not take it away."""
    await open_dash(page, server.url)
    async with load(server, 2) as readings:
        await expect(page.locator(running_rows)).to_have_count(2)
        row = page.locator(running_rows).nth(1)
        tape = await row.locator("code").inner_text()
        button = page.get_by_role("button", name=f"Cancel tape {tape}")
        await button.focus()
        tokens = float(await row.locator(".tokens").inner_text())
        await expect(row.locator(".tokens")).not_to_have_text(f"{tokens:g}")
        await expect(button).to_be_focused()
        await page.keyboard.press("Enter")
        ended = page.locator("#tapes tbody tr", has_text=tape)
        await expect(ended).to_have_attribute("data-state", "done")
        await expect(ended.locator(".state")).to_have_text("done (cancelled)")
        await expect(button).to_be_hidden()
        await expect(page.locator("#tapes-region")).to_be_focused()
        (reading,) = [reading for reading in readings if reading.tape == tape]
        assert reading.done
        assert reading.done["finish_reason"] == "cancelled"
        await expect(page.locator(running_rows)).to_have_count(1)


async def test_a_reload_shows_what_was(page: Page, server: RunningServer) -> None:
    await open_dash(page, server.url)
    async with load(server, 3):
        await expect(page.locator("#running")).to_have_text("3")
    await expect(page.locator("#running")).to_have_text("0")
    await page.reload()
    await expect(page.locator("#running")).to_have_text("0")
    assert await highest(page, "Sequences: running") >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(page: Page, server: RunningServer, scheme: Any) -> None:
    await page.emulate_media(color_scheme=scheme)
    await open_dash(page, server.url)
    async with load(server, 2):
        await expect(page.locator(running_rows)).to_have_count(2)
        await page.locator("#summary summary").click()
        for shown in ("#problem", "#key-field", "#tapes-rest"):
            await page.locator(shown).evaluate("element => { element.hidden = false }")
        await page.locator("#problem").evaluate("element => { element.textContent = 'Something' }")
        assert await violations(page) == []
    await page.evaluate("document.body.append(document.createElement('button'))")
    assert [name for name, _ in await violations(page)] == ["button-name"], "it can find something"
    await page.get_by_role("link", name="Chat").click()
    await expect(page.locator("#prompt")).to_be_visible()


async def test_a_phone_does_not_scroll_sideways_and_nothing_moves_by_itself(
    page: Page, server: RunningServer
) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.emulate_media(reduced_motion="reduce")
    await open_dash(page, server.url)
    async with load(server, 3):
        await expect(page.locator(running_rows)).to_have_count(3)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("button", name="Cancel tape").first.scroll_into_view_if_needed()
        await expect(page.get_by_role("button", name="Cancel tape").first).to_be_in_viewport()
        await picture(page, "dash-phone")
    await page.locator("#server").evaluate("element => { element.dataset.ready = 'false' }")
    assert await page.evaluate("document.getAnimations().length") == 0
    await page.emulate_media(reduced_motion="no-preference")
    assert await page.evaluate("document.getAnimations().length") == 1, "the lamp's"


# ---- servers that come and go, and want keys


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), context=1 << 16)


@pytest.fixture
def locked(tiny: Path) -> Iterator[RunningServer]:
    keys = tiny / "keys"
    keys.write_text("alice\nbob\n")
    with running(tiny / "log", "--model", str(tiny), "--api-key-file", str(keys)) as server:
        yield server


async def test_the_page_comes_back_with_the_server(page: Page, tiny: Path) -> None:
    flags = ("--model", str(tiny), "--shutdown-grace", "0")
    with running(tiny / "log", *flags) as first:
        async with Proxy(first.url) as proxy:
            await open_dash(page, proxy.url)
            async with load(first, 2, ENDLESS):
                await expect(page.locator("#running")).to_have_text("2")
            await asyncio.to_thread(first.stop)
            await expect(page.locator("#problem")).to_contain_text("Disconnected. The server")
            await expect(page.locator("#state")).to_have_text("server out of reach")
            await expect(page.locator("#announcer")).to_have_text("server out of reach")
            with running(tiny / "log-2", *flags) as second:
                proxy.lead_to(second.url)
                await expect(page.locator("#state")).to_contain_text("engine ready")
                await expect(page.locator("#announcer")).to_have_text("engine ready")
                await expect(page.locator("#problem")).to_be_hidden()
                assert await highest(page, "Sequences: running") >= 2, "it was before"


async def test_a_key_is_asked_for_and_shows_its_own_tapes(
    page: Page, locked: RunningServer
) -> None:
    async with httpx.AsyncClient(base_url=locked.url, timeout=patience(30)) as http:
        tapes = {
            key: (await http.post("/v1/tapes", json=ENDLESS | {"prompt": "x"}, headers=bearer(key)))
            for key in ("alice", "bob")
        }
        await page.goto(f"{locked.url}/dash")
        for key, said in [("nobody", "wants an API key"), ("alice", "does not know this key")]:
            await expect(page.locator("#problem")).to_contain_text(said)
            await expect(page.locator("#key")).to_be_focused()
            await page.fill("#key", key)
            await page.keyboard.press("Enter")
        await expect(page.locator("#state")).to_contain_text("engine ready")
        await expect(page.locator("#key-field")).to_be_hidden()
        await expect(page.locator("#problem")).to_be_hidden()
        await expect(page.locator("#tapes tbody tr")).to_have_count(1)
        await expect(page.locator("#tapes code")).to_have_text(tapes["alice"].json()["tape"])
        await page.get_by_role("button", name="Cancel tape").click()
        await expect(page.locator("#tapes td.state")).to_have_text("done (cancelled)")
        for key, reason in [("alice", "cancelled"), ("bob", None)]:
            headers = bearer(key) | {"Accept": "application/json"}
            snapshot = await http.get(tapes[key].headers["Location"], headers=headers)
            assert snapshot.json()["finish_reason"] == reason
