"""What is kept of a body, and how it is read: the routes' own way, with no model behind it."""

import asyncio
import gc
from types import SimpleNamespace

import httpx
import orjson
from fastapi import APIRouter, FastAPI

from app import errors
from app.api.json_route import StrictJSONRoute
from app.api.openai.chat_types import ChatBody
from app.api.openai.completions_types import CompletionBody
from app.api.openai.route import OpenAIRoute
from app.guard.api_keys import ApiKeys
from app.guard.fair_share import Shares
from app.guard.heap import Heap
from app.readers.turns import Turns
from app.settings import Settings


def application(body_type: type, route_class: type[StrictJSONRoute]) -> FastAPI:
    router = APIRouter(route_class=route_class)

    @router.post("/")
    async def taken(body: body_type) -> str:  # type: ignore[valid-type]
        return type(body).__name__

    app = FastAPI()
    errors.install(app)
    app.include_router(router)
    app.state.services = SimpleNamespace(
        settings=Settings(),
        bodies=Shares(64 << 20),
        heap=Heap(),
        turns=Turns(),
        api_keys=ApiKeys(),
    )
    return app


def client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_a_refused_body_leaves_nothing_for_the_garbage_collector() -> None:
    """Else it is walked through in one go, at some time: 40,000 lists took up to 120 ms."""
    lists = [[]] * 39_000  # type: ignore[var-annotated]
    for body_type, route_class, bodies in (
        (CompletionBody, OpenAIRoute, [{"prompt": "a", "x": lists}, {"prompt": lists}]),
        (
            CompletionBody,
            StrictJSONRoute,
            [{"prompt": "a", "x": lists}, {"prompt": "a", "n": lists}],
        ),
        (ChatBody, OpenAIRoute, [{"messages": lists}, {"messages": [{"role": lists}]}]),
    ):
        async with client(application(body_type, route_class)) as http:
            for body in bodies:
                data = orjson.dumps(body)
                headers = {"Content-Type": "application/json"}
                gc.collect()
                gc.disable()
                try:
                    answer = await http.post("/", content=data, headers=headers)
                    assert answer.status_code in (400, 422)
                    await asyncio.sleep(0)
                    assert gc.collect() < 5_000
                finally:
                    gc.enable()


async def test_a_large_body_is_read_in_several_passes_of_the_loop() -> None:
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            await asyncio.sleep(0)
            passes += 1

    async def passes_of(size: int) -> int:
        data = orjson.dumps({"prompt": [1000] * size, "max_tokens": 1})
        before = passes
        answer = await http.post("/", content=data, headers={"Content-Type": "application/json"})
        assert answer.json() == "CompletionBody"
        return passes - before

    counting = asyncio.create_task(count())
    async with client(application(CompletionBody, StrictJSONRoute)) as http:
        await passes_of(10)
        assert await passes_of(100_000) > await passes_of(10) + 3
    counting.cancel()
