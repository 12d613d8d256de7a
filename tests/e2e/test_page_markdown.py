"""What a model writes is hostile: it is shown, never run, and freezes nothing."""

from typing import Any

import pytest
from playwright.async_api import Page, Request, expect

from tests.e2e.chat_page import (
    FAKE_TAPE,
    answer,
    ask,
    expect_state,
    open_chat,
)
from tests.server import RunningServer
from tests.speed import patience

HOSTILE = """\
<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3">

[click](javascript:window.hacked=4) [data](data:text/html,<script>1</script>) <javascript:alert(1)>
[relative](/v1/tapes) [tab](java\tscript:window.hacked=5) [good](https://example.org/a?b=1)

![spy](https://evil.example/pixel.png?secret) ![x](data:image/png;base64,AAAA)

<iframe src="https://evil.example/"></iframe>

[ref]: javascript:window.hacked=6
A [ref] and [another][ref].
"""

ELEMENTS = """
root => [...root.querySelectorAll("*")].filter((one) =>
  ["SCRIPT", "IMG", "IFRAME", "SVG", "OBJECT", "STYLE", "LINK", "FORM"]
    .includes(one.tagName.toUpperCase())
  && !one.closest("button")).map((one) => one.outerHTML)
"""

LONGEST_TASK = """
() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) {
      window.longest = Math.max(window.longest, duration);
    }
  }).observe({ type: "longtask" });
}
"""

TEXT = """\
# The sea

Gulls write **white notes** on the *blue*; a tide that keeps its time.

- one
- two with `code`
  - nested
- three

1. first
2. second

> a quote
> of two lines

| name | size |
|:-----|-----:|
| a    | 1    |
| b    | 22   |

```python
def reverse(text):
    return text[::-1]
```

The end &amp; [a link](https://example.org).
"""


async def show(page: Page, server: RunningServer, tokens: list[str], per_second: int) -> None:
    await open_chat(page, server.url)
    await page.evaluate(FAKE_TAPE, {"tokens": tokens, "perSecond": per_second})
    await ask(page, "Show me")
    await expect_state(page, "done")


def pieces(text: str, size: int = 4) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


async def test_hostile_text_is_shown_and_does_nothing(page: Page, server: RunningServer) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    await show(page, server, pieces(HOSTILE), 3000)
    body = answer(page).locator(".body")
    assert await page.evaluate("window.hacked") is None
    assert await body.evaluate(ELEMENTS) == []
    links = await body.locator("a").evaluate_all("all => all.map(({ href }) => href)")
    assert set(links) == {"https://example.org/a?b=1", "https://evil.example/pixel.png?secret"}
    assert [url for url in asked if "evil" in url or url.startswith("data:")] == []
    await expect(body).to_contain_text("<script>window.hacked = 1</script>")


@pytest.mark.parametrize("size", [1, 3, 100_000])
async def test_the_parts_of_markdown(page: Page, server: RunningServer, size: int) -> None:
    """However the text is cut into tokens."""
    await show(page, server, pieces(TEXT, size), 3000)
    body = answer(page).locator(".body")
    await expect(body.locator("h3")).to_have_text("The sea")
    await expect(body.locator("strong")).to_have_text("white notes")
    await expect(body.locator(".chunk > ul > li")).to_have_count(3)
    await expect(body.locator("ul ul li")).to_have_text("nested")
    await expect(body.locator("ol > li")).to_have_count(2)
    await expect(body.locator("blockquote")).to_contain_text("of two lines")
    await expect(body.locator("td")).to_have_count(4)
    await expect(body.locator("pre code")).to_have_text("def reverse(text):\n    return text[::-1]")
    await expect(body.locator(".hl-keyword")).to_have_count(2)
    await expect(body.locator("p").last).to_have_text("The end & a link.")
    await expect(body.locator(".chunk > *")).to_have_count(8)


SHAPE = """
root => ({
  text: root.textContent.replace(/\\s+/g, " "),
  tags: [...root.querySelectorAll(
    ":is(h3,p,ul,ol,li,blockquote,table,tr,td,th,pre,strong,em,a,hr,code)")]
    .filter((one) => one.tagName !== "P" || !one.closest("li"))
    .map((one) => one.tagName + (one.start ?? "")),
})
"""

LISTS = """\
1. First, **bold**.

2. Second.

   Still the second.
3. Third:
   - inner
   - more

* star

- dash
-  wide

12) twelve
13) thirteen

- [ ] open
- [x] done

2024 was a year.
-5 is a number.
"""


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("text", [TEXT, LISTS], ids=["parts", "lists"])
async def test_it_looks_the_same_however_it_came(
    page: Page, server: RunningServer, text: str, size: int
) -> None:
    """An item that has only begun must not end the list above it."""
    await show(page, server, pieces(text, size), 200)
    typed = await answer(page).locator(".body").evaluate(SHAPE)
    await page.click("#new-chat")
    await page.evaluate(FAKE_TAPE, {"tokens": [text], "perSecond": 3000})
    await ask(page, "Show me")
    await expect_state(page, "done")
    assert typed == await answer(page).locator(".body").evaluate(SHAPE)


@pytest.mark.parametrize(
    "text",
    [
        ">" * 100_000,
        "> " * 50_000,
        "- " * 50_000,
        "[" * 50_000 + "](x)",
        "*a_" * 30_000,
        "`" * 50_000,
        "|a" * 200 + "|\n" + "|-" * 200 + "|\n" + ("|b" * 200 + "|\n") * 200,
        "\n".join(" " * depth + "- x" for depth in range(0, 2000, 2)),
        "<a " * 30_000,
        "![" * 30_000,
        "x" * 200_000,
        "\n\n".join(["> " * 60 + "deep"] * 1500),
    ],
    ids=lambda text: text[:6].strip() or "blank",
)
async def test_a_text_that_is_made_to_freeze_the_page_does_not(
    page: Page, server: RunningServer, text: str
) -> None:
    """A reaction of the page is measured in its own clock, against a generous bound."""
    await open_chat(page, server.url)
    await page.evaluate(LONGEST_TASK)
    await page.evaluate(FAKE_TAPE, {"tokens": pieces(text, 1000), "perSecond": 3000})
    await ask(page, "Show me")
    await expect_state(page, "done")
    assert await page.evaluate("window.longest") < patience(1000)
    shown: Any = await answer(page).locator(".body").text_content()
    assert len(shown) > 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["prose", "list", "code"])
async def test_5000_tokens_at_300_a_second_make_no_long_task(
    page: Page, server: RunningServer, kind: str
) -> None:
    unit = {
        "prose": [" the", " sea", " is", " **blue**", ",", " and", " deep", ".", "\n", "\n"],
        "list": ["- ", "an", " item", " of", " some", " `words`", " and", " more", ".", "\n"],
        "code": ["    ", "value", " =", " other", "(", "1", ",", " 2", ")", "\n"],
    }[kind]
    tokens = (["```python\n"] if kind == "code" else []) + unit * 500
    await open_chat(page, server.url)
    await page.evaluate(LONGEST_TASK)
    await page.evaluate(FAKE_TAPE, {"tokens": tokens, "perSecond": 300})
    await ask(page, "Show me")
    await expect_state(page, "done")
    longest = await page.evaluate("window.longest")
    print(f"{kind}: the longest task took {longest:.0f} ms")
    assert longest < 50


async def test_requests_stay_in_the_drawer_when_frames_go(
    page: Page, server: RunningServer
) -> None:
    """Of 1,500 frames the newest are kept; what happened besides is found with "Events only"."""
    await show(page, server, ["word "] * 1500, 3000)
    if not await page.locator("#wire").is_visible():
        await page.click("#show-wire")
    await expect(page.locator(".wire-line.frame").first).to_be_visible()
    await expect(page.locator(".wire-line.request")).to_have_count(0)
    await page.check("#wire-events")
    await expect(page.locator(".wire-line.frame")).to_have_count(0)
    await expect(page.locator(".wire-line.request")).to_have_count(2)
    await expect(page.locator("#wire-verdict")).to_have_text("Nothing lost, nothing twice")
