"""What tests of every kind share."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine client does; before torch
if "PYTEST_XDIST_WORKER" in os.environ:  # two at a time already share the processors
    os.environ |= {"OMP_NUM_THREADS": "1", "TICKERTAPE_THREADS": "1"}

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest

from model.checkpoints.checkpoint import Checkpoint, open_checkpoint
from model.checkpoints.hub import DEFAULT_MODEL, resolve
from model.native import library
from model.text.tokenizer import Tokenizer
from tests.server import RunningServer, running
from tests.speed import Promised, patience, slowness
from tests.tiny import tiny_llama

HEADER_TIMEOUT = 2.0  # seconds, of the tiny server

# A deadline of hypothesis is an absolute time: a slow machine would fail, and call it flaky. Two
# runs of `make test` try the same examples; `make test-long` tries others each time.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("others", deadline=None)
hypothesis.settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--requests", type=int, default=1000, help="of tests/e2e/test_many_requests.py"
    )
    parser.addoption("--minutes", type=float, default=0.2, help="of tests/e2e/test_soak.py")
    parser.addoption(
        "--examples", type=int, default=5, help="an operation, of tests/e2e/test_schemathesis.py"
    )
    parser.addoption("--fuzz", type=int, default=300, help="requests of tests/e2e/test_fuzz.py")
    parser.addoption(
        "--generations",
        type=int,
        default=50,
        help="of tests/model/text/test_grammar.py, 50 schemas",
    )
    parser.addoption(
        "--cluster", action="store_true", help="tests/e2e/test_cluster.py, which needs Ray"
    )
    parser.addoption(
        "--redis-rounds", type=int, default=1, help="of tests/e2e/test_redis_refuses.py"
    )
    parser.addoption("--redis-seconds", type=float, default=0.0, help="of each of its faults")
    parser.addoption("--clock", action="store_true", help="only what has its limits in seconds")
    parser.addoption("--kills", type=int, default=3, help="in a row, of tests/e2e/test_crashes.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ray is heavy: `make cluster-test` has its tests, `make test` has not."""
    return True if collection_path.name == "test_cluster.py" and not config.option.cluster else None


def pytest_configure() -> None:
    slowness()  # before xdist starts its workers, which inherit it
    _heed_signals()


def _heed_signals() -> None:
    """What `nohup` and a shell's `&` have us ignore, the programs under test would ignore too."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"speed: time limits are {patience(1):.1f} times those written"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The limit of each test, its own or that of pyproject.toml, follows the machine's speed."""
    for item in items:
        own = item.get_closest_marker("timeout")
        limit = float(own.args[0] if own else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(patience(limit)), append=False)
    if config.getoption("clock"):
        items[:] = [item for item in items if "promised" in getattr(item, "fixturenames", ())]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Of one file there may be none that share, or none that run alone."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """No server of a test shall change its arithmetic in the middle: the kernels come first."""
    if library.why_unavailable() is None and library.cached() is None:
        library.compile()


@pytest.fixture
def promised(pytestconfig: pytest.Config) -> Promised:
    """`promised(what, took, limit)`: a time in seconds that the contract gives.

    It is printed; `make clock` also holds it, which needs a quiet machine.
    """

    def promised(what: str, took: float, limit: float) -> None:
        print(f"{what}: {took:.3f} s, promised {limit:g} s")
        assert took < limit or not pytestconfig.getoption("clock")

    return promised


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's file: real weights."""
    return resolve(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def checkpoint(model_path: Path) -> Checkpoint:
    return open_checkpoint(model_path)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return checkpoint.tokenizer()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The default server, as `make run` starts it, shared by all tests that leave it well."""
    with running(tmp_path_factory.mktemp("server") / "log") as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=patience(60)) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path) -> Iterator[RunningServer]:
    """Cheap to start, and shared by all tests that leave it well."""
    flags = ("--model", str(tiny_model), "--header-timeout", str(HEADER_TIMEOUT))
    with running(tiny_model / "log", *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()
