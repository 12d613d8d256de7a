"""What README shows is run as it is written, and everyday questions are asked with the defaults."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server import RunningServer
from tests.speed import patience

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    (language, code)
    for language, code in BLOCK.findall((ROOT / "README.md").read_text())
    if "127.0.0.1:8000" in code and ("curl" in code or language == "python")
]

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "What is 2 + 2?",
    "Give me a recipe for pancakes.",
    "Tell me a joke.",
    "What is a cat?",
    "How are you today?",
    "Explain photosynthesis in one sentence.",
    "Give me three tips for a good night's sleep.",
]
ENOUGH = 1000  # tokens: an answer that gets there is noise, or goes round in circles


@pytest.mark.parametrize(("language", "code"), SNIPPETS, ids=["curl", "client", "openai"])
async def test_a_snippet_prints_a_sensible_answer(
    server: RunningServer, language: str, code: str
) -> None:
    """Sensible: it is about what was asked, in words, and it ends."""
    command = [sys.executable, "-c"] if language == "python" else ["sh", "-c"]
    process = await asyncio.create_subprocess_exec(
        *command,
        code.replace("http://127.0.0.1:8000", server.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    out, err = await asyncio.wait_for(process.communicate(), patience(60))
    text = out.decode()
    assert process.returncode == 0, err.decode()
    if "curl" in code:
        assert '"finish_reason":"stop"' in text
        text = "".join(re.findall(r'"text":"(.*?)"', text))
    about = "photosynthesis|plant|light|energy|oxygen|carbon"
    if "sleep" in code:
        about = "sleep|bed|night"
    assert re.search(about, text, re.IGNORECASE), text
    assert 5 < len(text.split()) < ENOUGH, text


async def asked(http: httpx.AsyncClient, question: str, seed: int) -> tuple[str, str]:
    """The text, and the reason of its end."""
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "seed": seed, "max_length": ENOUGH}
    location = (await http.post("/v1/tapes", json=body)).headers["Location"]
    await http.get(location)
    snapshot = (await http.get(location, headers={"Accept": "application/json"})).json()
    return snapshot["generated_text"], snapshot["finish_reason"]


async def everyday(http: httpx.AsyncClient, seeds: int) -> list[tuple[str, str, str]]:
    """Question, text and end of each answer."""
    asking = [(question, seed) for question in QUESTIONS for seed in range(seeds)]
    answers = await asyncio.gather(*(asked(http, *one) for one in asking))
    return [(question, *answer) for (question, _), answer in zip(asking, answers, strict=True)]


async def test_everyday_questions_get_answers_that_end(http: httpx.AsyncClient) -> None:
    for question, text, reason in await everyday(http, seeds=1):
        assert text.strip(), question
        assert reason == "stop", (question, text)


@pytest.mark.long
async def test_sixty_answers_are_not_empty_and_end(http: httpx.AsyncClient) -> None:
    answers = await everyday(http, seeds=5)
    empty = [question for question, text, _ in answers if not text.strip()]
    endless = [(question, text) for question, text, reason in answers if reason != "stop"]
    print(f"{len(answers)} answers, {len(empty)} empty, {len(endless)} without an end")
    assert (empty, endless) == ([], [])
