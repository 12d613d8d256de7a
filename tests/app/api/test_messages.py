"""A conversation instead of a prompt, on the native routes; and what fields left out mean."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoints.sampling_defaults import from_generation_config, from_gguf
from model.protocol.sampling_params import SamplingDefaults
from tests.server import parse_frames, read_stream, running

CHAT = [{"role": "user", "content": "Name three colours."}]
OWN = {
    "temperature": 0.6,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.1,
    "frequency_penalty": 0.2,
}
GREEDY = {"temperature": 0, "max_length": 20}


async def test_messages_are_what_the_chat_surface_makes_of_them(http: httpx.AsyncClient) -> None:
    asked = {"messages": CHAT, "temperature": 0, "max_tokens": 20}
    chat = (await http.post("/v1/chat/completions", json=asked)).json()
    answer = (await http.post("/generate", json={"messages": CHAT, **GREEDY})).json()
    assert answer["generated_text"] == chat["choices"][0]["message"]["content"]
    assert answer["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
    begun = await http.post("/v1/tapes", json={"messages": CHAT, **GREEDY})
    tape = begun.headers["Location"]
    await http.get(tape)
    snapshot = (await http.get(tape, headers={"Accept": "application/json"})).json()
    assert snapshot["generated_text"] == answer["generated_text"]


@pytest.mark.parametrize("path", ["/generate", "/v1/tapes"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "one of the two is required"),
        ({"max_length": 5}, "one of the two is required"),
        ({"prompt": "x", "messages": CHAT}, "not both"),
    ],
)
async def test_exactly_one_of_prompt_and_messages(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], words: str
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "prompt" in message
    assert "messages" in message
    assert words in message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (None, "messages"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ([{"role": "user", "content": "x", "colour": "red"}], "messages.0.colour"),
    ],
)
async def test_wrong_messages_are_named(http: httpx.AsyncClient, messages: Any, param: str) -> None:
    answer = await http.post("/v1/tapes", json={"messages": messages})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param


async def test_an_answer_keeps_to_a_schema(http: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": schema | {"additionalProperties": False}},
    }
    body = {"messages": CHAT, "response_format": form, "max_length": 40}
    answer = (await http.post("/generate", json=body)).json()
    assert json.loads(answer["generated_text"]) == {"city": "Paris"}
    wrong = await http.post("/v1/tapes", json=body | {"response_format": {"type": "xml"}})
    assert wrong.json()["error"]["param"] == "response_format"


async def test_a_get_takes_a_prompt_only(http: httpx.AsyncClient) -> None:
    answer = await http.get("/generate", params={"messages": json.dumps(CHAT)})
    assert answer.status_code == 422


async def test_an_empty_answer_says_what_to_do(http: httpx.AsyncClient) -> None:
    """The first token ends it: every token does."""
    tokens = list(range(2, 50))
    bias = {str(token): 100 for token in tokens[:1]}
    body = {"messages": CHAT, "temperature": 0, "logit_bias": bias, "stop_token_ids": tokens}
    answer = (await http.post("/generate", json=body)).json()
    assert answer["generated_text"] == ""
    assert "min_tokens" in answer["note"]
    stream = await http.post("/generate", json=body | {"stream": True})
    assert json.loads(parse_frames(stream.text)[-1].data or "")["note"] == answer["note"]
    full = (await http.post("/generate", json={"messages": CHAT, **GREEDY})).json()
    assert "note" not in full


# ---- sampling defaults


async def sampled(http: httpx.AsyncClient, path: str = "/v1/tapes", **body: Any) -> str:
    asked = {"prompt": "The sea was", "seed": 7, "max_length": 30, "ignore_eos": True} | body
    location = (await http.post("/v1/tapes", json=asked)).headers["Location"]
    await http.get(location)
    snapshot = await http.get(location, headers={"Accept": "application/json"})
    text: str = snapshot.json()["generated_text"]
    return text


async def test_the_built_in_model_has_defaults_of_its_own(http: httpx.AsyncClient) -> None:
    (model,) = (await http.get("/v1/models")).json()["data"]
    assert model["chat"]
    assert not model["demo"]
    shown = model["sampling"]
    assert shown == OWN | {"repetition_penalty": 1.0}
    assert (await http.get(f"/v1/models/{model['id']}")).json()["sampling"] == shown
    assert await sampled(http) == await sampled(http, **shown)
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "frequency_penalty": 0}
    assert await sampled(http, **plain) != await sampled(http), "what is sent always wins"


async def test_generate_keeps_its_documented_temperature(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The sea was", "seed": 7, "max_length": 30, "ignore_eos": True}
    answer = (await http.post("/generate", json=body)).json()["generated_text"]
    assert answer == await sampled(http, temperature=0.7)


async def test_a_greedy_answer_is_the_argmax(http: httpx.AsyncClient) -> None:
    """None of the model's own defaults counts for it."""
    none = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    assert await sampled(http, temperature=0) == await sampled(http, temperature=0, **none)


async def test_openai_surfaces_take_them_too(http: httpx.AsyncClient) -> None:
    asked = {"messages": CHAT, "seed": 7, "max_tokens": 30}

    async def answer(**fields: Any) -> Any:
        response = await http.post("/v1/chat/completions", json=asked | fields)
        return response.json()["choices"][0]["message"]["content"]

    assert await answer() == await answer(**OWN)
    assert await answer(temperature=None) == await answer(**OWN), "null is a field left out"
    body = {"input": "Hi", "max_output_tokens": 2}
    response = (await http.post("/v1/responses", json=body)).json()
    assert (response["temperature"], response["top_p"]) == (0.6, 0.95)


@pytest.fixture(scope="module")
def advised_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advised")
    for file in tiny_model.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    advice = {"temperature": 0.3, "top_k": 7, "top_p": 0.5, "repetition_penalty": 1.2}
    (folder / "generation_config.json").write_text(json.dumps(advice))
    return folder


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("auto", {"temperature": 0.3, "top_k": 7, "top_p": 0.5, "repetition_penalty": 1.2}),
        ("none", {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}),
        ("PATH", {"temperature": 1.0, "top_k": 3, "top_p": 1.0, "repetition_penalty": 1.0}),
    ],
)
def test_the_option_says_whose_defaults_count(
    advised_model: Path, tmp_path: Path, flag: str, expected: dict[str, float]
) -> None:
    if flag == "PATH":
        file = tmp_path / "mine.json"
        file.write_text('{"top_k": 3}')
        flag = str(file)
    flags = ("--model", str(advised_model), "--generation-config", flag)
    with running(tmp_path / "log", *flags) as server:
        answer = httpx.get(f"{server.url}/v1/models", timeout=30).json()
    assert answer["data"][0]["sampling"] == expected | {
        "min_p": 0.0,
        "frequency_penalty": 0.0,
    }


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--model", str(tiny_model), "--generation-config", str(tmp_path / "none.json"))
    log = tmp_path / "log"
    with pytest.raises(RuntimeError), running(log, *flags):
        pass
    assert "--generation-config" in log.read_text()


def test_advice_that_makes_no_sense_is_passed_over() -> None:
    found = from_generation_config(
        {"temperature": "hot", "top_k": -1, "top_p": float("nan"), "min_p": True, "x": 1}
    )
    assert found == SamplingDefaults(top_k=0)
    assert from_generation_config({"temperature": 99, "top_k": 3.5}) == SamplingDefaults()
    metadata = {
        "general.sampling.temp": 0.949999988079071,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.0,
    }
    assert from_gguf(metadata) == SamplingDefaults(
        temperature=0.95, top_k=20, repetition_penalty=1.0
    )


# ---- killing the engine


async def test_the_engine_can_be_killed_in_a_demo_only(
    http: httpx.AsyncClient, tiny_model: Path, tmp_path: Path
) -> None:
    assert (await http.post("/v1/demo/kill-engine")).status_code == 404
    with running(tmp_path / "log", "--model", str(tiny_model), "--demo") as demo:
        url = f"{demo.url}/v1/demo/kill-engine"
        foreign = await http.post(url, headers={"Sec-Fetch-Site": "cross-site"})
        assert foreign.status_code == 403
        pid = demo.health()["engine_pid"]
        assert (await http.post(url)).status_code == 204
        health = await demo.health_becomes(30, engine="ready")
        while health["engine_pid"] == pid:
            health = await demo.health_becomes(30, engine="ready")


# ---- heads


async def first_token(http: httpx.AsyncClient, tape: str, **headers: str) -> int:
    """Read a tape up to the first token, and leave; the reader's number."""
    async with http.stream("GET", f"/v1/tapes/{tape}", headers=headers) as response:
        reader = int(response.headers["X-Reader"])
        async for frame in read_stream(response):
            if frame.event == "token":
                heads = (await http.get(f"/v1/tapes/{tape}/heads")).json()
                assert [one["reader"] for one in heads["readers"]] == [reader]
                break
    while True:
        if not (await http.get(f"/v1/tapes/{tape}/heads")).json()["readers"]:
            return reader
        await asyncio.sleep(0.01)


UNDER_WAY = 50  # entries: steps that the engine takes before it hears of the pause


async def test_heads_say_where_readers_are_and_what_happened(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The sea", "max_length": 5000, "ignore_eos": True, "grace": 60}
    tape = (await http.post("/v1/tapes", json=body)).json()["tape"]
    first = await first_token(http, tape)
    second = await first_token(http, tape, **{"Last-Event-ID": f"{tape}:1"})
    heads = (await http.get(f"/v1/tapes/{tape}/heads")).json()
    assert heads["status"] == "paused"
    left, paused, resumed, *again = heads["marks"]
    assert (left["kind"], left["reader"]) == ("leave", first)
    assert 1 <= left["entry"] <= paused["entry"]
    assert paused["kind"] == "pause"
    assert (resumed["kind"], resumed["entry"], resumed["reader"]) == ("resume", 1, second)
    assert 0 <= resumed["replayed"] - (paused["entry"] - 1) <= UNDER_WAY
    assert [mark["kind"] for mark in again] == ["leave", "pause"]
    assert 0 <= heads["last_entry"] - again[1]["entry"] <= UNDER_WAY
    await http.delete(f"/v1/tapes/{tape}")
    assert (await http.get(f"/v1/tapes/{'A' * 22}/heads")).status_code == 404
