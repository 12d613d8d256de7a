"""Bad input meets a clear answer: status, shape, the field's name and range, quickly."""

import json
import re
from functools import partial
from statistics import median
from typing import Any

import httpx
import pytest

from tests.server import RunningServer
from tests.speed import in_turn

JSON = {"Content-Type": "application/json"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt", "at least 1 character"),
    ({}, "prompt", "required"),
    ({"prompt": 7}, "prompt", "string"),
    ({"prompt": None}, "prompt", "string"),
    ({"prompt": ["a"]}, "prompt", "string"),
    ({"prompt": "x", "colour": "red"}, "colour", "not a field"),
    ({"prompt": "x", "max_length": 0}, "max_length", "from 1 to 1048576"),
    ({"prompt": "x", "max_length": "12"}, "max_length", "an integer from 1"),
    ({"prompt": "x", "max_length": True}, "max_length", "an integer from 1"),
    ({"prompt": "x", "max_length": 2**64 - 1}, "max_length", "from 1 to 1048576"),
    ({"prompt": "x", "max_length": 9000}, "max_length", "from 1 to 8191"),
    ({"prompt": "x", "temperature": -0.1}, "temperature", "a number from 0 to 2"),
    ({"prompt": "x", "temperature": 2.5}, "temperature", "from 0 to 2"),
    ({"prompt": "x", "temperature": "hot"}, "temperature", "from 0 to 2"),
    ({"prompt": "x", "top_k": -1}, "top_k", "from 0 to"),
    ({"prompt": "x", "top_p": 1.1}, "top_p", "from 0 to 1"),
    ({"prompt": "x", "min_p": -1}, "min_p", "from 0 to 1"),
    ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "from 0.01 to 10"),
    ({"prompt": "x", "presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
    ({"prompt": "x", "frequency_penalty": -3}, "frequency_penalty", "from -2 to 2"),
    ({"prompt": "x", "seed": 2**63}, "seed", "from -9223372036854775808 to"),
    ({"prompt": "x", "seed": 1.5}, "seed", "an integer"),
    ({"prompt": "x", "logprobs": 21}, "logprobs", "from 0 to 20"),
    ({"prompt": "x", "min_tokens": -1}, "min_tokens", "from 0 to"),
    ({"prompt": "x", "min_tokens": 200}, "min_tokens", "from 0 to max_length, which is 100"),
    ({"prompt": "x", "stop": ["s"] * 17}, "stop", "at most 16"),
    ({"prompt": "x", "stop": ["s" * 257]}, "stop.0", "at most 256"),
    ({"prompt": "x", "stop": [""]}, "stop.0", "at least 1"),
    ({"prompt": "x", "stop_token_ids": [49152]}, "stop_token_ids", "from 0 to 49151"),
    ({"prompt": "x", "stop_token_ids": [-1]}, "stop_token_ids.0", "from 0 to"),
    ({"prompt": "x", "logit_bias": {"49152": 1}}, "logit_bias", "from 0 to 49151"),
    ({"prompt": "x", "logit_bias": {"5": 101}}, "logit_bias.5", "from -100 to 100"),
    ({"prompt": "x", "logit_bias": {"five": 1}}, "logit_bias.five", "from 0 to"),
    (
        {"prompt": "x", "on_disconnect": "explode"},
        "on_disconnect",
        "'pause', 'abort' or 'continue'",
    ),
    ({"prompt": "x", "priority": 1001}, "priority", "an integer from -1000 to 1000"),
    ({"prompt": "x", "priority": "high"}, "priority", "an integer from -1000 to 1000"),
    ({"prompt": "x", "cache_salt": ""}, "cache_salt", "at least 1 character"),
    ({"prompt": "x", "cache_salt": "s" * 257}, "cache_salt", "at most 256 characters"),
    ({"prompt": "x", "grace": -1}, "grace", "from 0 to 3600"),
    ({"prompt": "x", "stream": "yes"}, "stream", "boolean"),
    ({"prompt": "x", "ignore_eos": 1}, "ignore_eos", "boolean"),
]


JSON = {"Content-Type": "application/json"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"type", "message", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("path", ["/generate", "/v1/tapes"])
@pytest.mark.parametrize(("body", "param", "words"), REFUSED, ids=lambda v: str(v)[:50])
async def test_refused_parameters_are_named_with_their_range(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    if path == "/v1/tapes" and "stream" in body:
        words = "not a field"
    response = await http.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code == 422
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None
    assert error["param"].startswith(param)
    assert words in error["message"]
    assert param.partition(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "temperature": "nan"}, "temperature"),
        ({"prompt": "x", "max_length": "-5"}, "max_length"),
        ({"prompt": "x", "colour": "red"}, "colour"),
        ({"prompt": "x", "logit_bias": "{"}, "logit_bias"),
        ({"prompt": "x", "stream": "false"}, "stream"),
    ],
)
async def test_refused_queries(http: httpx.AsyncClient, query: dict[str, str], param: str) -> None:
    response = await http.get("/generate", params=query)
    assert response.status_code == 422
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"prompt": "x", "temperature": NaN}', "application/json", 400),
        (b'{"prompt": "x", "temperature": Infinity}', "application/json", 400),
        (b'{"prompt": "x", "temperature": 1e999}', "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": "\xff"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": "x", "logit_bias": ' + b"[" * 64 + b"]" * 64 + b"}", "application/json", 400),
        (b'{"prompt": "x", "prompt": "y"}', "application/json", 400),
        (b'{"prompt": "x", "seed": 18446744073709551616}', "application/json", 400),
        (b'{"prompt": "x", "max_length": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b"prompt=x", "application/x-www-form-urlencoded", 415),
        (b"", "application/json", 422),
        (b"[]", "application/json", 422),
        (b'"prompt"', "application/json", 422),
    ],
)
async def test_bodies_that_are_no_request(
    http: httpx.AsyncClient, body: bytes, content_type: str, status: int
) -> None:
    response = await http.post("/generate", content=body, headers={"Content-Type": content_type})
    assert response.status_code == status, response.text
    assert error_of(response)["message"]


async def test_a_large_body_is_answered_as_a_small_one(http: httpx.AsyncClient) -> None:
    """It is read in another way: with blanks before it, in turns and in steps."""
    bodies = [json.dumps(body).encode() for body, _, _ in REFUSED]
    bodies += [b"{", b'{"prompt": "x", "prompt": "y"}', b"[]", b'"prompt"', b'{"prompt": "\xff"}']
    bodies += [b'{"prompt": "Once", "max_length": 1, "temperature": 0}']
    for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/tokenize"):
        for body in bodies:
            small, large = [
                await http.post(path, content=blanks + body, headers=JSON)
                for blanks in (b"", b" " * 50_000)
            ]
            assert large.status_code == small.status_code, (path, body)
            if small.status_code != 200:
                assert without_places(large.text) == without_places(small.text)


def without_places(text: str) -> str:
    """Of what is wrong with a JSON text, and no numbers: they count from its beginning."""
    return re.sub(r"\d+", "", text)


async def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post("/generate", json={"prompt": "word " * 8300})
    assert response.status_code == 422
    error = error_of(response)
    assert error["param"] == "prompt"
    assert "8301 tokens" in error["message"]
    assert "from 1 to 8191" in error["message"]


async def test_refusals_are_quick_and_leave_the_engine_alone(
    server: RunningServer, http: httpx.AsyncClient
) -> None:
    """Next to the tokenization of the same text, which a prompt that is too long costs."""
    before = server.health()
    bodies: list[dict[str, Any]] = [
        {"prompt": ""},
        {"prompt": "x", "top_k": -1},
        {"prompt": "x", "colour": 1},
        {"prompt": "word " * 8300},
        {"prompt": "long " * 40_000},
    ]
    for body in bodies:
        refused, tokenized = await in_turn(
            5,
            partial(answered, http, 422, "/generate", body),
            partial(answered, http, 200, "/tokenize", {"prompt": body["prompt"] or "x"}),
        )
        assert median(refused) < 3 * max(tokenized), (str(body)[:30], refused, tokenized)
    assert server.health() == before


async def answered(http: httpx.AsyncClient, status: int, path: str, body: Any) -> None:
    assert (await http.post(path, json=body)).status_code == status


async def test_a_body_over_the_limit_is_413(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"prompt": "x" * (2 << 20)})
    assert response.status_code == 413
    assert "--max-body-size" in error_of(response)["message"]


async def test_many_wrong_entries_do_not_hold_up_the_loop(http: httpx.AsyncClient) -> None:
    """They take about as long as to send them, and to find that their last bracket is missing."""
    body = {"prompt": "x", "logit_bias": {f"x{number}": 1 for number in range(30_000)}}
    assert "at most 1024" in error_of(await http.post("/generate", json=body))["message"]
    await refused_as_fast_as_torn(http, body)


async def refused_as_fast_as_torn(http: httpx.AsyncClient, body: Any) -> None:
    """What is wrong with the body costs no more than the reading of its JSON."""
    raw = json.dumps(body).encode()

    async def refused(raw: bytes, status: int) -> None:
        answer = await http.post("/generate", content=raw, headers=JSON)
        assert answer.status_code == status

    wrong, torn = await in_turn(5, partial(refused, raw, 422), partial(refused, raw[:-1], 400))
    assert median(wrong) < 5 * max(torn), (wrong, torn)


async def test_a_key_that_comes_twice_is_named(http: httpx.AsyncClient) -> None:
    body = b'{"prompt": "x", "logit_bias": {"5": 1, "5": 2}}'
    error = error_of(await http.post("/generate", content=body, headers=JSON))
    assert error["code"] == "malformed_json"
    assert "the key '5' comes twice" in error["message"]
    assert "send it once" in error["message"]


async def test_another_sites_page_cannot_start_a_generation(http: httpx.AsyncClient) -> None:
    cross = {"Sec-Fetch-Site": "cross-site"}
    response = await http.get("/generate", params={"prompt": "x"}, headers=cross)
    assert response.status_code == 403
    assert error_of(response)["code"] == "cross_site"


async def test_unknown_paths_and_methods_have_the_same_shape(http: httpx.AsyncClient) -> None:
    for method, path, status in [("GET", "/nothing", 404), ("PUT", "/generate", 405)]:
        response = await http.request(method, path)
        assert response.status_code == status
        assert error_of(response)["message"]
