"""Many readers of one tape: they cost the machine little, and their number has a bound."""

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from app.readers.turns import Turns
from app.tapes.tape import FEW, Choice, Entry, Item, Tape
from tests.server import RunningServer, read_stream, running
from tests.speed import patience
from tests.tiny import tiny_llama


class Pass:
    """Counts the passes of the event loop."""

    def __init__(self) -> None:
        self.number = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.number += 1


async def read(tape: Tape, turns: Turns) -> list[Item]:
    async def turn() -> None:
        await turns.take("client")

    return [item async for item in tape.read(0, turn)]


async def in_company(num_readers: int, num_tokens: int) -> list[list[Item]]:
    """What each reader got of a tape that they all followed from its beginning."""
    tape, turns = Tape("a" * 22, [Choice(1)]), Turns()
    tape.readers = num_readers
    readers = [asyncio.create_task(read(tape, turns)) for _ in range(num_readers)]
    await asyncio.sleep(0)
    for number in range(num_tokens):
        tape.append(Entry("x", number))
        for _ in range(4):
            await asyncio.sleep(0)
    tape.finish("stop")
    return await asyncio.gather(*readers)


async def test_a_few_readers_get_every_token_at_once() -> None:
    for items in await in_company(FEW, 50):
        assert [len(item) for item in items if isinstance(item, list)] == [1] * 50


async def test_a_crowd_is_woken_less_often_the_larger_it_is() -> None:
    frames = []
    for num_readers in (20, 200):
        got = await in_company(num_readers, 50)
        assert all(sum(len(i) for i in items if isinstance(i, list)) == 50 for items in got)
        frames.append(sum(isinstance(item, list) for items in got for item in items))
    print(f"frames of 20 and of 200 readers, 50 tokens: {frames}")
    assert frames[1] < 200 * 50 / 4
    assert frames[1] < 3 * frames[0], "all together stay within a budget"


async def test_one_piece_of_work_in_each_pass_of_the_loop() -> None:
    turns, passes = Turns(share=1.0), Pass()
    counting = asyncio.create_task(passes.run())
    taken: Counter[int] = Counter()

    async def work() -> None:
        for _ in range(10):
            await turns.take("client")
            taken[passes.number] += 1

    await asyncio.gather(*(work() for _ in range(30)))
    counting.cancel()
    assert taken.total() == 300
    assert max(taken.values()) <= 2, "the count of passes itself is one pass off at times"


async def test_a_crowd_of_one_client_does_not_hold_up_another() -> None:
    turns, order = Turns(), []

    async def work(client: str, pieces: int) -> None:
        for _ in range(pieces):
            await turns.take(client)
            order.append(client)

    crowd = [asyncio.create_task(work("crowd", 5)) for _ in range(100)]
    await asyncio.sleep(0)
    await work("other", 3)
    await asyncio.gather(*crowd)
    places = [place for place, client in enumerate(order) if client == "other"]
    assert len(places) == 3
    assert places[-1] < 12, "every second turn, once it has asked for one"


async def test_who_leaves_while_it_waits_takes_no_turn_from_others() -> None:
    turns = Turns()
    waiting = [asyncio.create_task(turns.take("client")) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    async with asyncio.timeout(patience(10)):
        await asyncio.gather(*waiting, return_exceptions=True)
        await turns.take("client")
    assert [task.cancelled() for task in waiting[2::2]] == [True] * 4


async def test_all_work_together_gets_a_share_of_the_time() -> None:
    """Counted in processor time of the work and of the whole: rests are real, not busy."""
    turns = Turns(share=0.25, burst=0.0001)
    loop = asyncio.get_running_loop()
    began, pieces = loop.time(), 0
    while loop.time() < began + 0.5:
        await turns.take("client")
        pieces += 1
        sum(range(20_000))
    worked = pieces * cost_of(lambda: sum(range(20_000)))
    assert worked < 0.5 * 0.5


def cost_of(work: Callable[[], Any]) -> float:
    costs = []
    for _ in range(50):
        began = time.thread_time()
        work()
        costs.append(time.thread_time() - began)
    return min(costs)


# ---- over sockets


BODY: dict[str, Any] = {"prompt": "a", "max_length": 30_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its answers do not end while a test runs."""
    path = tiny_llama(tmp_path_factory.mktemp("bounded"), context=32_768)
    with running(path / "log", "--model", str(path), "--max-readers", "6") as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
async def http(bounded: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=bounded.url, timeout=patience(60)) as client:
        yield client


async def follow(stack: AsyncExitStack, http: httpx.AsyncClient, tape: str) -> httpx.Response:
    return await stack.enter_async_context(http.stream("GET", f"/v1/tapes/{tape}"))


async def test_the_bound_names_itself_and_never_keeps_out_the_first_readers_of_a_tape(
    http: httpx.AsyncClient,
) -> None:
    tapes = [(await http.post("/v1/tapes", json=BODY)).json()["tape"] for _ in range(2)]
    async with AsyncExitStack() as stack:
        first = [await follow(stack, http, tapes[0]) for _ in range(8)]
        assert [answer.status_code for answer in first] == [200] * 6 + [429] * 2
        assert "--max-readers" in (await refused(first[-1]))["message"]
        second = [await follow(stack, http, tapes[1]) for _ in range(FEW + 1)]
        assert [answer.status_code for answer in second] == [200] * FEW + [429]
    async with AsyncExitStack() as stack, asyncio.timeout(patience(20)):
        while (await follow(stack, http, tapes[0])).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the server has not seen yet that the others have left
    for tape in tapes:
        await http.delete(f"/v1/tapes/{tape}")


async def refused(answer: httpx.Response) -> dict[str, Any]:
    await answer.aread()
    assert int(answer.headers["Retry-After"]) >= 1
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "too_many_readers"
    return error


# ---- a bystander beside a crowd, with the real model


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.parametrize("crowd", [1000])
async def test_a_bystander_keeps_most_of_its_speed_beside_a_crowd(
    server: RunningServer, crowd: int
) -> None:
    """The crowd's own clients take their part of this machine, too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    body = {"prompt": "Once", "max_length": 7000, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as http:
        tape = (await http.post("/v1/tapes", json=body)).headers["X-Tape"]
        alone = await speed(http)
        readers = [asyncio.create_task(drain(server.port, tape)) for _ in range(crowd)]
        while await attached(http) < crowd:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        beside = await speed(http)
        await http.delete(f"/v1/tapes/{tape}")
        assert sum(await asyncio.gather(*readers)) > 0
        tape = (await http.post("/v1/tapes", json=body)).headers["X-Tape"]
        again = await speed(http)
        await http.delete(f"/v1/tapes/{tape}")
    ratio = beside / min(alone, again)
    print(f"{crowd} readers: {alone:.0f}, {beside:.0f}, {again:.0f} tokens/s: {ratio:.2f}")
    assert ratio > 0.6


async def speed(http: httpx.AsyncClient, tokens: int = 200) -> float:
    """Tokens a second of one stream, after its first."""
    body = {"prompt": "Hello", "max_length": tokens, "ignore_eos": True, "stream": True}
    times: list[float] = []
    async with http.stream("POST", "/generate", json=body) as answer:
        async for frame in read_stream(answer):
            if frame.event == "token":
                count = len(json.loads(frame.data or "")["token_ids"])
                times += [time.monotonic()] * count
    return (len(times) - 1) / (times[-1] - times[0])


async def drain(port: int, tape: str) -> int:
    """Read a tape to its end, for as little as can be; how many bytes came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /v1/tapes/{tape} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    count = 0
    while piece := await reader.read(65536):
        count += len(piece)
    writer.close()
    return count


async def attached(http: httpx.AsyncClient) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return next(float(x.split()[-1]) for x in lines if x.startswith("tickertape:readers_attached"))
