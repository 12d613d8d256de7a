"""A server that is cheap to start: what tests need that are not about a model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import RunningServer, running
from tests.tiny import tiny_llama

HEADER_TIMEOUT = 2.0


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path) -> Iterator[RunningServer]:
    """Shared by all tests that leave it well. Heads must be there in two seconds."""
    flags = ("--model", str(tiny_model), "--header-timeout", str(HEADER_TIMEOUT))
    with running(tiny_model / "log", *flags) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()
