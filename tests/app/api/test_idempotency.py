"""Twice is once: the same Idempotency-Key and request are the same tape."""

import asyncio
import secrets
from typing import Any

import httpx
import pytest

from tests.answers import Reading, read_all
from tests.server import RunningServer

BODY: dict[str, Any] = {"prompt": "Once upon", "max_length": 12, "ignore_eos": True}


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_urlsafe(8)}


async def stream(
    http: httpx.AsyncClient, key: dict[str, str], body: dict[str, Any] = BODY
) -> Reading:
    return await read_all(http, body, headers=key)


async def test_sent_again_it_is_the_same_tape_from_its_start(
    server: RunningServer, http: httpx.AsyncClient, key: dict[str, str]
) -> None:
    """Without a seed, so that another generation would differ; streamed or not, early or late."""
    body = BODY | {"temperature": 2.0, "max_length": 40}
    before = server.health()["tapes"]
    first, second = await asyncio.gather(stream(http, key, body), stream(http, key, body))
    late = await stream(http, key, body)
    assert first == second == late
    whole = (await http.post("/generate", json=body, headers=key)).json()
    assert (whole["tape"], whole["generated_text"]) == (first.tape, first.text)
    spelt_out = dict(reversed(body.items())) | {"top_k": 0}
    created = await http.post("/v1/tapes", json=spelt_out, headers=key)
    assert (created.status_code, created.json()["tape"]) == (201, first.tape)
    assert server.health()["tapes"] == before + 1


async def test_with_another_request_it_is_refused(
    http: httpx.AsyncClient, key: dict[str, str]
) -> None:
    await stream(http, key)
    for other in ({"prompt": "Twice"}, {"max_length": 13}, {"seed": 1}, {"logit_bias": {"1": 1.0}}):
        refused = await http.post("/generate", json=BODY | other, headers=key)
        assert refused.status_code == 409
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == ("Idempotency-Key", "idempotency_key_reused")


async def test_a_refused_request_leaves_its_key_free(
    http: httpx.AsyncClient, key: dict[str, str]
) -> None:
    refused = await http.post("/generate", json=BODY | {"max_length": 10**6}, headers=key)
    assert refused.status_code == 422
    assert (await http.post("/generate", json=BODY, headers=key)).status_code == 200


async def test_keys_that_are_none(http: httpx.AsyncClient) -> None:
    for key in ("", "x" * 256):
        refused = await http.post("/generate", json=BODY, headers={"Idempotency-Key": key})
        assert refused.status_code == 422
        assert refused.json()["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("kept", [True, False])
async def test_an_unstreamed_answer_goes_on_without_its_caller_if_it_has_a_key(
    server: RunningServer, http: httpx.AsyncClient, key: dict[str, str], kept: bool
) -> None:
    body = BODY | {"max_length": 200}
    headers = key if kept else {}
    caller = asyncio.create_task(http.post("/generate", json=body, headers=headers))
    await server.health_becomes(5, running=1)
    tapes = server.health()["tapes"]
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await server.health_becomes(5, running=0, kv_blocks_used=0)
    again = (await http.post("/generate", json=body, headers=key)).json()
    assert again["usage"]["completion_tokens"] == 200
    assert server.health()["tapes"] == tapes + (not kept)
