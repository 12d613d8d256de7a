"""The server is told to go, or goes: every stream gets its end, and no process stays behind."""

import asyncio
import os
import pty
import select
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.answers import read_all, to_the_end, typing
from tests.server import TICKERTAPE, RunningServer, free_port, running
from tests.speed import Promised, patience

ROOT = Path(__file__).parents[2]

ENDLESS = {"prompt": "Once", "max_length": 4000, "ignore_eos": True}
GRACE = 1.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of this test's own, to be ended."""
    with running(tmp_path / "log", "--shutdown-grace", str(GRACE)) as server:
        yield server


@pytest.fixture
async def http(own: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=own.url, timeout=patience(30)) as client:
        yield client


def gone(pid: int, seconds: float) -> bool:
    """Whether the process ends within that time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    readable, _, _ = select.select([handle], [], [], patience(seconds))
    os.close(handle)
    return bool(readable)


def works(pid: int, seconds: float) -> None:
    """Return when the process has used that much more processor time."""

    def used() -> float:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    wanted, deadline = used() + seconds, time.monotonic() + patience(30)
    while used() < wanted:
        assert time.monotonic() < deadline, "the process does not work"
        time.sleep(0.01)


async def shut_down(http: httpx.AsyncClient) -> str:
    """How an endless stream ends."""
    reading = await read_all(http, ENDLESS)
    assert reading.done
    return str(reading.done["finish_reason"])


async def test_sigterm_ends_50_streams_in_order(
    own: RunningServer, http: httpx.AsyncClient, promised: Promised
) -> None:
    """/ready says so before the first of them ends. Those that are short end by themselves."""
    short = [asyncio.create_task(read_all(http, {"prompt": "Hi", "max_length": 2})) for _ in "ab"]
    streams = [asyncio.create_task(shut_down(http)) for _ in range(50)]
    await own.health_becomes(20, running=50)
    told = time.monotonic()
    own.process.send_signal(signal.SIGTERM)
    while (ready := await http.get("/ready")).status_code == 200:
        assert not any(stream.done() for stream in streams)
    assert ready.json()["error"]["code"] == "draining"
    assert "Retry-After" in ready.headers
    unready = time.monotonic() - told
    refused = await http.post("/generate", json=ENDLESS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert await asyncio.gather(*streams) == ["shutdown"] * 50
    assert all(reading.done for reading in await asyncio.gather(*short))
    assert await asyncio.to_thread(own.process.wait, patience(10)) == 0
    promised("/ready 503", unready, 0.2)
    promised("exit", time.monotonic() - told, GRACE + 2)


async def test_a_stream_can_be_resumed_while_the_server_drains(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, _):
        own.process.send_signal(signal.SIGTERM)
        headers = {"Last-Event-ID": reading.event_id}
        async with http.stream("GET", "/generate?prompt=x", headers=headers) as response:
            await reading.read(response)
    assert reading.done
    assert reading.done["finish_reason"] == "shutdown"


async def test_a_second_sigterm_well_after_the_first_ends_it_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "log", "--shutdown-grace", "3600") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patience(30)) as http:
            stream = asyncio.create_task(shut_down(http))
            await server.health_becomes(20, running=1)
            engine = server.health()["engine_pid"]
            async with asyncio.timeout(patience(30)):
                while not stream.done():
                    server.process.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.2)
            assert await stream == "shutdown"
            await asyncio.to_thread(server.process.wait, patience(10))
            assert gone(engine, 5)


TOGETHER = {
    "group and leader": [(os.killpg, signal.SIGTERM), (os.kill, signal.SIGTERM)],
    "three in a row": [(os.kill, signal.SIGTERM)] * 3,
    "Ctrl-C twice": [(os.killpg, signal.SIGINT)] * 2,
    "Ctrl-C, then SIGTERM": [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)],
    "hang-up, then SIGTERM": [(os.killpg, signal.SIGHUP), (os.kill, signal.SIGTERM)],
}


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param(signals, id=name, marks=[pytest.mark.long] if number > 1 else [])
        for number, (name, signals) in enumerate(TOGETHER.items())
    ],
)
async def test_signals_that_belong_together_are_one(
    tmp_path: Path, signals: list[tuple[Callable[[int, int], None], signal.Signals]]
) -> None:
    """The streams have their grace, their end, and exit code 0 follows."""
    grace = 4.0
    with running(tmp_path / "log", "--shutdown-grace", str(grace)) as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=patience(30)) as http,
            typing(http, ENDLESS) as (reading, frames),
        ):
            told = time.monotonic()
            for send, number in signals[:-1]:
                send(server.process.pid, number)
                await server.health_becomes(5, engine="draining")  # else the next merges with it
            send, number = signals[-1]
            send(server.process.pid, number)
            if time.monotonic() - told >= 1:
                pytest.skip("so slow that the last signal rightly counts as a second one")
            assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
            assert time.monotonic() - told >= grace
        assert server.process.wait(timeout=patience(10)) == 0


@contextmanager
def on_a_terminal(*command: str | Path) -> Iterator[tuple[int, int]]:
    """A process with a terminal of its own, whose shell it leads; its id and our end of that."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    try:
        yield pid, terminal
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


async def answers(http: httpx.AsyncClient) -> None:
    """Wait until the server is ready."""
    async with asyncio.timeout(patience(60)):
        while True:
            with suppress(httpx.TransportError):
                if (await http.get("/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def exit_status(pid: int) -> int:
    async with asyncio.timeout(patience(30)):
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    return status


def ctrl_c(pid: int, terminal: int) -> None:
    os.write(terminal, b"\x03")


def term_the_group(pid: int, terminal: int) -> None:
    os.killpg(pid, signal.SIGTERM)


def term_make_alone(pid: int, terminal: int) -> None:
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [ctrl_c, term_the_group, term_make_alone])
async def test_make_run_lets_streams_end_in_order(end: Callable[[int, int], None]) -> None:
    """GNU make gets the signal too, and hands it on: the server is told twice."""
    port, venv = free_port(), TICKERTAPE.parent.parent
    variables = [f"VENV={venv}", f"PORT={port}", f"ARGS=--shutdown-grace {GRACE}"]
    make = ("make", "-C", ROOT, "-o", f"{venv}/.run", "run", *variables)
    url = f"http://127.0.0.1:{port}"
    with on_a_terminal(*make) as (pid, terminal):
        async with httpx.AsyncClient(base_url=url, timeout=patience(30)) as http:
            await answers(http)
            server = (await http.get("/health")).json()["engine_pid"]
            async with typing(http, ENDLESS) as (reading, frames):
                told = time.monotonic()
                end(pid, terminal)
                assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
                assert time.monotonic() - told >= GRACE
        said = await asyncio.to_thread(all_of, terminal)
        await exit_status(pid)
        assert gone(server, 10)
        assert "Finished server process" in said, said


def all_of(terminal: int) -> str:
    """What was written there, up to the end of those who write."""
    said = b""
    with suppress(OSError):  # EIO: nobody has it open any more
        while part := os.read(terminal, 1 << 16):
            said += part
    os.close(terminal)
    return said.decode()


async def test_a_terminal_that_hangs_up_drains() -> None:
    """A closed ssh session. What is logged from then on can be written nowhere."""
    port = free_port()
    command = (TICKERTAPE, "serve", "--port", str(port), "--shutdown-grace", str(GRACE))
    with on_a_terminal(*command) as (pid, terminal):
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=patience(30)
        ) as http:
            await answers(http)
            engine = (await http.get("/health")).json()["engine_pid"]
            async with typing(http, ENDLESS) as (reading, frames):
                told = time.monotonic()
                os.close(terminal)
                assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
                assert time.monotonic() - told >= GRACE
        assert await exit_status(pid) == 0
        assert gone(engine, 10)


async def test_with_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    serve = f"exec nohup {TICKERTAPE} serve --port {port} > {log} 2>&1"
    with on_a_terminal("sh", "-c", serve) as (pid, terminal):
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=patience(30)
        ) as http:
            await answers(http)
            os.close(terminal)
            os.kill(pid, signal.SIGHUP)
            body = ENDLESS | {"max_length": 50}
            assert len((await read_all(http, body)).token_ids) == 50
        os.kill(pid, signal.SIGTERM)
        assert await exit_status(pid) == 0, log.read_text()


def own_children(server: RunningServer) -> list[int]:
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_children_outlive_a_hang_up_that_the_whole_session_gets(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    """Streams end in order, so the engine must be there; so must the tokenizer of long texts."""
    text = "word " * 40_000
    assert (await http.post("/tokenize", json={"prompt": text})).status_code == 200
    children = own_children(own)
    assert len(children) == 2
    async with typing(http, ENDLESS) as (reading, frames):
        for child in children:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                os.kill(child, number)
        assert (await http.post("/tokenize", json={"prompt": text})).status_code == 200
        os.kill(own.process.pid, signal.SIGHUP)
        assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
    assert {"state": "recovering"} not in reading.statuses
    assert own.process.wait(timeout=patience(10)) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_it_serves_without_standard_streams(closed: str, tmp_path: Path) -> None:
    command = ("sh", "-c", f'exec "$0" "$@" {closed}', TICKERTAPE)
    with running(tmp_path / "log", command=command) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patience(30)) as http:
            for _ in range(3):
                assert (await read_all(http, ENDLESS | {"max_length": 5})).done
        assert server.stop() == 0


async def test_a_signal_to_the_whole_group_lets_streams_end_in_order(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, frames):
        os.killpg(own.process.pid, signal.SIGTERM)
        assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
    assert own.process.wait(timeout=patience(10)) == 0


async def test_a_signal_to_the_whole_group_while_it_loads_is_no_failure(tmp_path: Path) -> None:
    """The engine does not ignore signals yet, and dies of it."""
    with running(tmp_path / "log", ready=False) as server:
        async with asyncio.timeout(patience(30)):
            while "Uvicorn running" not in server.log.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert server.health()["engine"] == "loading"
        os.killpg(server.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, patience(10)) == 0, (
            server.log.read_text()
        )


def test_ctrl_c_before_there_is_a_server_says_nothing(tmp_path: Path) -> None:
    """The engine is there already, the application is being imported."""
    with running(tmp_path / "log", ready=False) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        deadline = time.monotonic() + patience(30)
        while not (engine := children.read_text()):
            assert time.monotonic() < deadline, "no engine was started"
            time.sleep(0.001)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(patience(10)) == 130
        assert server.log.read_text() == ""
        assert gone(int(engine), 5)


async def test_an_engine_that_hangs_does_not_hold_up_the_end(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, frames):
        engine = own.health()["engine_pid"]
        os.kill(engine, signal.SIGSTOP)
        own.process.send_signal(signal.SIGTERM)
        assert (await to_the_end(reading, frames))["finish_reason"] == "shutdown"
    assert own.process.wait(timeout=patience(10)) == 0
    assert gone(engine, 1)


async def test_the_engine_goes_when_the_api_process_is_killed(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    """Though its reports were never read: the peer's socket is then reset, not closed in order."""
    async with typing(http, ENDLESS):
        engine = own.health()["engine_pid"]
        own.process.send_signal(signal.SIGSTOP)
        works(engine, seconds=0.2)  # so that reports pile up unread
        own.process.kill()
        assert gone(engine, 5)


async def test_a_signal_while_it_recovers_ends_the_streams(
    own: RunningServer, http: httpx.AsyncClient
) -> None:
    async with typing(http, ENDLESS) as (reading, frames):
        engine = own.health()["engine_pid"]
        os.kill(engine, signal.SIGKILL)
        own.process.send_signal(signal.SIGTERM)
        done = await to_the_end(reading, frames)
    assert done["finish_reason"] == "shutdown"
    assert own.process.wait(timeout=patience(10)) == 0
